// The histogram as processors without AVX-512 run it, callable from Python's ctypes: built by test_core_histogram.py
// with PYDEPLOY_PORTABLE, together with the files of csrc/core that it needs.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/bins.hpp"
#include "core/histogram.hpp"

extern "C" {

std::size_t slack() {
    return deploy::bins_slack;
}

std::size_t bins(const float* values, std::size_t count, int exponent, std::uint32_t half, std::uint32_t* result) {
    return deploy::bins_above_zero({values, count}, exponent, half, {result, count + deploy::bins_slack});
}

// `numbers`: exponent, NaN count, infinity count; `extremes`: minimum, maximum.
void histogram(const float* values, std::size_t count, std::size_t bins, int threads, std::uint64_t* negative,
               std::uint64_t* positive, std::int64_t* numbers, double* extremes) {
    deploy::Histogram found(bins);
    found.update({values, count}, threads);
    const deploy::Histogram::State& state = found.state();
    std::ranges::copy(state.negative, negative);
    std::ranges::copy(state.positive, positive);
    numbers[0] = state.exponent;
    numbers[1] = static_cast<std::int64_t>(state.nan_count);
    numbers[2] = static_cast<std::int64_t>(state.inf_count);
    extremes[0] = state.minimum;
    extremes[1] = state.maximum;
}
}
