#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace deploy {

// What the values of a block have in common.
struct BlockScan {
    bool finite = true;  // whether all are
    double low = 0.0;    // of the finite values; where there are none, low > high
    double high = 0.0;
};

BlockScan scan(std::span<const float> values);

// Bins of width 2^exponent: a value x with x >= 0 is in bin floor(x / width), one below zero in `half` bins further
// than -x. Writes the bins of all values that are not in bin 0, in order, and returns how many these are: behind a ReLU
// half of the values are zero, and adding those to one bin one by one would be all waiting.
// `values` must be finite, their bins below `half`, at most 2^24, and `bins` must have bins_slack entries more than
// `values`. Other values go into some bin, never beyond 2 * half.
std::size_t bins_above_zero(std::span<const float> values, int exponent, std::uint32_t half,
                            std::span<std::uint32_t> bins);

inline constexpr std::size_t bins_slack = 16;

}  // namespace deploy
