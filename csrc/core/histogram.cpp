#include "core/histogram.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/threads.hpp"

namespace deploy {
namespace {

constexpr std::size_t block_values = 8192;                     // fits the first-level cache
constexpr std::size_t task_values = std::size_t{1} << 19;      // values that make a thread worth its start
constexpr std::uint64_t tally_limit = std::uint64_t{1} << 31;  // before 32-bit counts could overflow
constexpr std::size_t max_bins = std::size_t{1} << 24;
constexpr std::uint32_t magnitude_mask = 0x7fffffffU;
constexpr std::uint32_t infinity_bits = 0x7f800000U;

struct Block {
    std::uint32_t nonfinite = 0;
    std::int32_t low = std::numeric_limits<std::int32_t>::max();  // ordered bits, see below
    std::int32_t high = std::numeric_limits<std::int32_t>::min();
};

// Integers in the order of the floats they stand for; integer minima vectorise, float minima do not.
std::int32_t ordered(std::uint32_t bits) {
    const auto number = static_cast<std::int32_t>(bits);
    return number ^ ((number >> 31) & 0x7fffffff);
}

double from_ordered(std::int32_t number) {
    const auto bits = static_cast<std::uint32_t>(number ^ ((number >> 31) & 0x7fffffff));
    return static_cast<double>(std::bit_cast<float>(bits)) + 0.0;  // -0 becomes 0
}

Block scan(std::span<const float> values) {
    Block block;
    for (const float value : values) {
        const auto bits = std::bit_cast<std::uint32_t>(value);
        const bool finite = (bits & magnitude_mask) < infinity_bits;
        block.nonfinite += finite ? 0U : 1U;
        block.low = std::min(block.low, finite ? ordered(bits) : std::numeric_limits<std::int32_t>::max());
        block.high = std::max(block.high, finite ? ordered(bits) : std::numeric_limits<std::int32_t>::min());
    }
    return block;
}

// IEEE half to float, exact. Halves with the smallest exponent are multiples of 2^-24.
float from_half(std::uint16_t half) {
    const std::uint32_t sign = (half & 0x8000U) << 16;
    const std::uint32_t exponent = (half >> 10) & 0x1fU;
    const std::uint32_t mantissa = half & 0x3ffU;
    if (exponent == 0) {
        const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
        return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
    }
    const std::uint32_t wide = exponent == 0x1f ? 0xffU : exponent + 112;
    return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

// The smallest exponent whose bins cover `magnitude`: frexp gives the power of two just above it.
int needed_exponent(double magnitude, std::size_t bins) {
    int above = 0;
    std::frexp(magnitude, &above);
    const int bits = std::countr_zero(bins);
    return magnitude > 0 ? std::max(Histogram::min_exponent, above - bits) : Histogram::min_exponent;
}

std::uint64_t sum(std::span<const std::uint64_t> counts) {
    return std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
}

void merge_neighbours(std::vector<std::uint64_t>& counts, int doublings) {
    // Beyond 63 doublings everything is in the first bin, as bins are at most 2^24.
    const int shift = std::min(doublings, 63);
    for (std::size_t i = 1; i < counts.size(); ++i) {
        const std::uint64_t moved = std::exchange(counts[i], 0);
        counts[i >> shift] += moved;
    }
}

}  // namespace

Histogram::Histogram(std::size_t bins) {
    if (bins < 2 || bins > max_bins || !std::has_single_bit(bins)) {
        throw std::invalid_argument("bins must be a power of two in 2..16777216, not " + std::to_string(bins));
    }
    state_.negative.resize(bins);
    state_.positive.resize(bins);
}

Histogram Histogram::from_state(State state) {
    if (state.negative.size() != state.positive.size()) {
        throw std::invalid_argument("the halves have " + std::to_string(state.negative.size()) + " and " +
                                    std::to_string(state.positive.size()) + " bins; expected as many in both");
    }
    Histogram result(state.positive.size());
    const std::uint64_t largest = std::uint64_t{1} << 52;
    const auto fits = [&](std::uint64_t count) { return count < largest; };
    if (!std::ranges::all_of(state.negative, fits) || !std::ranges::all_of(state.positive, fits)) {
        throw std::invalid_argument("a bin holds a negative or absurdly large count");
    }
    result.count_ = sum(state.negative) + sum(state.positive);
    const bool bounded = std::isfinite(state.minimum) && std::isfinite(state.maximum) && state.minimum <= state.maximum;
    if (bounded != (result.count_ > 0)) {
        throw std::invalid_argument("minimum and maximum contradict the counts");
    }
    const double magnitude = bounded ? std::max(std::abs(state.minimum), std::abs(state.maximum)) : 0.0;
    if (state.exponent != needed_exponent(magnitude, result.bins())) {
        throw std::invalid_argument("bin width 2^" + std::to_string(state.exponent) +
                                    " contradicts the minimum and maximum");
    }
    result.state_ = std::move(state);
    return result;
}

// Recent counts of one bin width: both halves, positive first. Two tables take turns, because adding to a bin that
// the value before has just been added to would wait for that store; 32 bits keep both in the fast cache.
struct Histogram::Tally {
    explicit Tally(std::size_t bins) : even(2 * bins), odd(2 * bins) {}

    void count(std::span<const float> finite, double scale) {
        std::array<std::uint32_t, block_values> bin;
        const auto half = static_cast<std::uint32_t>(even.size() / 2);
        std::uint32_t lowest = 0;  // values in the first bin
        for (std::size_t i = 0; i < finite.size(); ++i) {
            // Double, because 2^-127 (two bins, huge values) is not a normal float. The product is exact.
            const auto index = static_cast<std::int32_t>(static_cast<double>(std::abs(finite[i])) * scale);
            bin[i] = static_cast<std::uint32_t>(index) + (finite[i] < 0.0F ? half : 0U);
            lowest += bin[i] == 0 ? 1U : 0U;
        }
        std::size_t left = finite.size();
        if (lowest > finite.size() / 8) {
            // Behind a ReLU half of the values are zero. Adding them to one bin one by one is all waiting.
            left = 0;
            for (std::size_t i = 0; i < finite.size(); ++i) {
                const std::uint32_t index = bin[i];
                bin[left] = index;
                left += index != 0 ? 1U : 0U;
            }
            even[0] += lowest;
        }
        std::size_t i = 0;
        for (; i + 1 < left; i += 2) {
            ++even[bin[i]];
            ++odd[bin[i + 1]];
        }
        if (i < left) {
            ++even[bin[i]];
        }
        values += finite.size();
    }

    std::vector<std::uint32_t> even;
    std::vector<std::uint32_t> odd;
    std::uint64_t values = 0;
};

double Histogram::bin_width() const {
    return std::ldexp(1.0, state_.exponent);
}

Histogram::Extremes Histogram::update(std::span<const float> values, int threads) {
    return update_parallel(values, threads);
}

Histogram::Extremes Histogram::update_half(std::span<const std::uint16_t> bits, int threads) {
    return update_parallel(bits, threads);
}

template <typename Value>
Histogram::Extremes Histogram::update_parallel(std::span<const Value> values, int threads) {
    const auto available = static_cast<std::size_t>(thread_count(threads));
    const std::size_t parts = std::max<std::size_t>(1, std::min(available, values.size() / task_values));
    if (parts == 1) {
        return update_serial(values);
    }
    std::vector<Histogram> partial(parts, Histogram(bins()));
    parallel_for(parts, static_cast<int>(parts), [&](std::size_t i) {
        const std::size_t begin = values.size() * i / parts;
        partial[i].update_serial(values.subspan(begin, values.size() * (i + 1) / parts - begin));
    });
    Extremes extremes;
    for (const Histogram& other : partial) {
        merge(other);
        extremes.low = std::fmin(extremes.low, other.state_.minimum);
        extremes.high = std::fmax(extremes.high, other.state_.maximum);
    }
    return extremes;
}

Histogram::Extremes Histogram::update_serial(std::span<const float> values) {
    Tally tally(bins());
    Extremes extremes;
    for (std::size_t begin = 0; begin < values.size(); begin += block_values) {
        update_block(values.subspan(begin, std::min(block_values, values.size() - begin)), tally, extremes);
    }
    drain(tally);
    return extremes;
}

Histogram::Extremes Histogram::update_serial(std::span<const std::uint16_t> bits) {
    Tally tally(bins());
    Extremes extremes;
    std::array<float, block_values> converted;
    for (std::size_t begin = 0; begin < bits.size(); begin += block_values) {
        const auto part = bits.subspan(begin, std::min(block_values, bits.size() - begin));
        std::ranges::transform(part, converted.begin(), from_half);
        update_block(std::span<const float>(converted).first(part.size()), tally, extremes);
    }
    drain(tally);
    return extremes;
}

void Histogram::update_block(std::span<const float> values, Tally& tally, Extremes& extremes) {
    const Block block = scan(values);
    if (block.nonfinite < values.size()) {
        const double low = from_ordered(block.low);
        const double high = from_ordered(block.high);
        extremes.low = std::fmin(extremes.low, low);
        extremes.high = std::fmax(extremes.high, high);
        // Counts taken so far belong to the old width.
        if (needed_exponent(std::max(std::abs(low), std::abs(high)), bins()) > state_.exponent ||
            tally.values > tally_limit) {
            drain(tally);
        }
        include(low, high);
    }
    const double scale = std::ldexp(1.0, -state_.exponent);
    if (block.nonfinite == 0) {
        tally.count(values, scale);
        return;
    }
    std::array<float, block_values> finite;
    std::size_t kept = 0;
    for (const float value : values) {
        const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(value) & magnitude_mask;
        finite[kept] = value;
        kept += magnitude < infinity_bits ? 1U : 0U;
        state_.inf_count += magnitude == infinity_bits ? 1U : 0U;
        state_.nan_count += magnitude > infinity_bits ? 1U : 0U;
    }
    tally.count(std::span<const float>(finite).first(kept), scale);
}

void Histogram::drain(Tally& tally) {
    for (std::size_t i = 0; i < bins(); ++i) {
        state_.positive[i] += std::uint64_t{tally.even[i]} + tally.odd[i];
        state_.negative[i] += std::uint64_t{tally.even[bins() + i]} + tally.odd[bins() + i];
    }
    count_ += tally.values;
    tally = Tally(bins());
}

void Histogram::include(double low, double high) {
    // fmin and fmax ignore the NaN that stands for "nothing yet".
    state_.minimum = std::fmin(state_.minimum, low);
    state_.maximum = std::fmax(state_.maximum, high);
    grow(needed_exponent(std::max(std::abs(low), std::abs(high)), bins()));
}

void Histogram::grow(int exponent) {
    if (exponent > state_.exponent) {
        merge_neighbours(state_.negative, exponent - state_.exponent);
        merge_neighbours(state_.positive, exponent - state_.exponent);
        state_.exponent = exponent;
    }
}

void Histogram::merge(const Histogram& other) {
    if (other.bins() != bins()) {
        throw std::invalid_argument("cannot merge a histogram of " + std::to_string(other.bins()) +
                                    " bins into one of " + std::to_string(bins()));
    }
    if (other.count_ > 0) {
        include(other.state_.minimum, other.state_.maximum);
        const int shift = std::min(state_.exponent - other.state_.exponent, 63);
        for (std::size_t i = 0; i < bins(); ++i) {
            state_.negative[i >> shift] += other.state_.negative[i];
            state_.positive[i >> shift] += other.state_.positive[i];
        }
    }
    count_ += other.count_;
    state_.nan_count += other.state_.nan_count;
    state_.inf_count += other.state_.inf_count;
}

}  // namespace deploy
