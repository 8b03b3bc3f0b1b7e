#include "core/mask.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>
#include <string>

#include "core/sizes.hpp"
#include "core/threads.hpp"

namespace deploy {
namespace {

constexpr std::size_t longest_run = 64;
// Values that make a task worth its hand-over to a thread.
constexpr std::size_t task_values = std::size_t{1} << 16;

// Mark the n largest of `count` values that lie `stride` apart.
template <typename T>
void mark_run(const T* values, std::size_t stride, std::size_t count, std::size_t n, std::uint8_t* mask) {
    std::array<T, longest_run> magnitude;
    for (std::size_t i = 0; i < count; ++i) {
        const T value = std::abs(values[i * stride]);
        magnitude[i] = std::isnan(value) ? T{-0.5} : value;  // below all numbers, above what is marked
        mask[i * stride] = 0;
    }
    for (std::size_t kept = 0; kept < std::min(n, count); ++kept) {
        std::size_t best = 0;
        for (std::size_t i = 1; i < count; ++i) {
            best = magnitude[i] > magnitude[best] ? i : best;
        }
        mask[best * stride] = 1;
        magnitude[best] = T{-1};
    }
}

}  // namespace

template <typename T>
void keep_largest(std::span<const T> values, std::size_t size, std::size_t inner, std::size_t n, std::size_t m,
                  std::span<std::uint8_t> mask, int threads) {
    if (m < 1 || m > longest_run || n < 1 || n > m) {
        throw std::invalid_argument("expected 1 <= n <= m <= 64, got n = " + std::to_string(n) +
                                    ", m = " + std::to_string(m));
    }
    const std::size_t block = product({size, inner});
    if ((block == 0 ? !values.empty() : values.size() % block != 0) || mask.size() != values.size()) {
        throw std::invalid_argument("the length " + std::to_string(values.size()) + " contradicts the axes " +
                                    std::to_string(size) + " and " + std::to_string(inner));
    }
    if (values.empty()) {
        return;
    }
    const std::size_t outer = values.size() / block;
    const std::size_t step = std::max<std::size_t>(1, task_values / block);
    parallel_for((outer + step - 1) / step, thread_count(threads), [&](std::size_t task) {
        for (std::size_t o = task * step; o < std::min(outer, (task + 1) * step); ++o) {
            for (std::size_t begin = 0; begin < size; begin += m) {
                for (std::size_t i = 0; i < inner; ++i) {
                    const std::size_t first = o * block + begin * inner + i;
                    mark_run(values.data() + first, inner, std::min(m, size - begin), n, mask.data() + first);
                }
            }
        }
    });
}

template void keep_largest(std::span<const float>, std::size_t, std::size_t, std::size_t, std::size_t,
                           std::span<std::uint8_t>, int);
template void keep_largest(std::span<const double>, std::size_t, std::size_t, std::size_t, std::size_t,
                           std::span<std::uint8_t>, int);

}  // namespace deploy
