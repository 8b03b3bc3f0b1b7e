#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace deploy {

// A streaming histogram of magnitudes, kept apart for negative and other values.
//
// Bin i of a half counts values with i*w <= |x| < (i+1)*w, where the bin width w is the smallest power of two
// with bins*w > max|x|, but at least 2^-126. Widths being powers of two, growing merges neighbours exactly:
// the result depends on the values only, not on how they were split into batches or ordered.
// Not-a-number and infinite values are counted apart and change nothing else.
// Memory is 16 bytes a bin; an update is linear in the number of values. Not safe for concurrent use.
class Histogram {
  public:
    // Everything that a histogram holds, for storage.
    struct State {
        int exponent = min_exponent;  // w = 2^exponent
        std::vector<std::uint64_t> negative;
        std::vector<std::uint64_t> positive;
        double minimum = std::numeric_limits<double>::quiet_NaN();  // of the finite values; NaN where there are none
        double maximum = std::numeric_limits<double>::quiet_NaN();
        std::uint64_t nan_count = 0;
        std::uint64_t inf_count = 0;
    };

    // `bins` per half, a power of two in 2..2^24. Throws std::invalid_argument.
    explicit Histogram(std::size_t bins);

    // Throws std::invalid_argument where the parts contradict each other.
    static Histogram from_state(State state);

    // The smallest and the largest finite value of one call; NaN where there was none.
    struct Extremes {
        double low = std::numeric_limits<double>::quiet_NaN();
        double high = std::numeric_limits<double>::quiet_NaN();
    };

    // Count float32 values, on several threads where there are many.
    Extremes update(std::span<const float> values, int threads);

    // Count float16 values, given as their bits.
    Extremes update_half(std::span<const std::uint16_t> bits, int threads);

    // Add what `other` has counted. Throws std::invalid_argument for another number of bins.
    void merge(const Histogram& other);

    std::size_t bins() const { return state_.positive.size(); }
    std::uint64_t count() const { return count_; }  // finite values
    double bin_width() const;
    const State& state() const { return state_; }

    static constexpr int min_exponent = -126;  // 2^-126 is the smallest normal float32

  private:
    struct Tally;

    template <typename Value>
    Extremes update_parallel(std::span<const Value> values, int threads);
    Extremes update_serial(std::span<const float> values);
    Extremes update_serial(std::span<const std::uint16_t> bits);
    void update_block(std::span<const float> values, Tally& tally, Extremes& extremes);
    void drain(Tally& tally);
    void include(double low, double high);
    void grow(int exponent);

    State state_;
    std::uint64_t count_ = 0;
};

}  // namespace deploy
