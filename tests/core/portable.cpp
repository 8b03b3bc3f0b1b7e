// Histogram and surgery as processors without AVX-512 run them, callable from Python's ctypes: tests/portable.py builds
// this with PYDEPLOY_PORTABLE, together with the files of csrc/core that it needs.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/bins.hpp"
#include "core/histogram.hpp"
#include "core/surgery.hpp"

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

// One job; `picks` and `counts` have an entry for each dimension, a null pick keeps the whole dimension.
void gather(const std::byte* source, std::size_t item_bytes, std::size_t rank, const std::size_t* shape,
            const std::int64_t* const* picks, const std::size_t* counts, std::byte* target, std::size_t target_bytes,
            int threads) {
    deploy::GatherJob job;
    job.item_bytes = item_bytes;
    std::size_t items = 1;
    for (std::size_t dim = 0; dim < rank; ++dim) {
        job.shape.push_back(shape[dim]);
        deploy::Entries& entries = job.entries.emplace_back();
        if (picks[dim]) {
            entries.emplace(picks[dim], picks[dim] + counts[dim]);
        }
        items *= shape[dim];
    }
    job.source = {source, items * item_bytes};
    const std::span<std::byte> result{target, target_bytes};
    deploy::gather_many({&job, 1}, {&result, 1}, threads);
}
}
