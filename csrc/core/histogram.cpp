#include "core/histogram.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/bins.hpp"
#include "core/threads.hpp"

namespace deploy {
namespace {

constexpr std::size_t block_values = 2048;                     // with their bins, a third of the first-level cache
constexpr std::size_t task_values = std::size_t{1} << 19;      // values that make a thread worth its start
constexpr std::uint64_t tally_limit = std::uint64_t{1} << 31;  // before 32-bit counts could overflow
constexpr std::size_t max_bins = std::size_t{1} << 24;
constexpr std::uint64_t max_count = std::uint64_t{1} << 52;  // more than anybody counts, and exact as a double
constexpr std::size_t tables = 4;
constexpr std::size_t stagger = 64;  // entries by which tables miss being whole pages apart, which would slow loads
constexpr std::uint32_t magnitude_mask = 0x7fffffffU;
constexpr std::uint32_t infinity_bits = 0x7f800000U;

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

// No more than max_count.
std::uint64_t added(std::uint64_t one, std::uint64_t other) {
    return one >= max_count || other >= max_count ? max_count : std::min(one + other, max_count);
}

std::uint64_t sum(std::span<const std::uint64_t> counts) {
    return std::accumulate(counts.begin(), counts.end(), std::uint64_t{0}, added);
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
    result.count_ = added(sum(state.negative), sum(state.positive));
    if (std::max({result.count_, state.nan_count, state.inf_count}) >= max_count) {
        throw std::invalid_argument("a bin holds a negative or absurdly large count");
    }
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

// Recent counts of one bin width: both halves, positive first. Tables take turns, because adding to a bin that the
// value before has just been added to would wait for that store; 32 bits keep them in the fast caches.
struct Histogram::Tally {
    explicit Tally(std::size_t bins) : stride(2 * bins + stagger), counts(tables * stride) {}

    void count(std::span<const float> finite, int exponent) {
        std::array<std::uint32_t, block_values + bins_slack> bin;
        const auto half = static_cast<std::uint32_t>((stride - stagger) / 2);
        const std::size_t above = bins_above_zero(finite, exponent, half, bin);
        std::uint32_t* const table = counts.data();
        std::size_t i = 0;
        for (; i + tables <= above; i += tables) {
            for (std::size_t k = 0; k < tables; ++k) {
                ++table[k * stride + bin[i + k]];
            }
        }
        for (; i < above; ++i) {
            ++table[bin[i]];
        }
        table[0] += static_cast<std::uint32_t>(finite.size() - above);
        values += finite.size();
    }

    // The count of a bin, from all tables.
    std::uint64_t operator[](std::size_t bin) const {
        std::uint64_t sum = 0;
        for (std::size_t k = 0; k < tables; ++k) {
            sum += counts[k * stride + bin];
        }
        return sum;
    }

    std::size_t stride;
    std::vector<std::uint32_t> counts;
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
    const BlockScan block = scan(values);
    if (block.low <= block.high) {
        extremes.low = std::fmin(extremes.low, block.low);
        extremes.high = std::fmax(extremes.high, block.high);
        // Counts taken so far belong to the old width.
        if (needed_exponent(std::max(std::abs(block.low), std::abs(block.high)), bins()) > state_.exponent ||
            tally.values > tally_limit) {
            drain(tally);
        }
        include(block.low, block.high);
    }
    if (block.finite) {
        tally.count(values, state_.exponent);
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
    tally.count(std::span<const float>(finite).first(kept), state_.exponent);
}

void Histogram::drain(Tally& tally) {
    for (std::size_t i = 0; i < bins(); ++i) {
        state_.positive[i] += tally[i];
        state_.negative[i] += tally[bins() + i];
    }
    count_ += tally.values;
    std::ranges::fill(tally.counts, 0U);
    tally.values = 0;
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
    const std::uint64_t largest =
        std::max({added(count_, other.count_), added(state_.nan_count, other.state_.nan_count),
                  added(state_.inf_count, other.state_.inf_count)});
    if (largest >= max_count) {
        throw std::invalid_argument("the histograms hold too many counts to add: 2^52 or more");
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
