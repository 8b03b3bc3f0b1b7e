#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace deploy {

// N:M sparsity: in every run of `m` consecutive values along the middle axis of (outer, size, inner), mask is 1 for
// the `n` largest magnitudes and 0 elsewhere; of equal ones the first stay, NaN is below all numbers. The last run may
// be shorter than `m`, as if padded by zeros. Linear in the values times n; threads share outer.
// Throws std::invalid_argument for lengths that contradict each other, n outside 1..m and m outside 1..64.
template <typename T>
void keep_largest(std::span<const T> values, std::size_t size, std::size_t inner, std::size_t n, std::size_t m,
                  std::span<std::uint8_t> mask, int threads);

}  // namespace deploy
