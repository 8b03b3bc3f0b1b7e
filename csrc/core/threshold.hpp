#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace deploy {

// Clipping thresholds (amax) for magnitudes counted in bins [i*width, (i+1)*width). Empty bins at the end are
// ignored, so no threshold exceeds the upper edge of the last non-empty bin, called the maximum below.
// All throw std::invalid_argument for empty counts, a width that is not positive and finite, and too few levels.

// The edge i*width whose quantization to `levels` levels loses the least information, as in TensorRT's published
// calibration (S. Migacz, GTC 2017). For i = levels..bins: the reference P is the first i bins with all counts beyond
// added to the last of them; the candidate Q is the first i bins *without* those, merged into `levels` equal
// groups (bin k into group floor(k*levels/i)) and spread evenly over each group's non-empty bins. Candidates where Q
// is zero and P is not have an infinite divergence and drop out. The largest i within 1e-10 of the smallest
// KL(P || Q) wins; where all are infinite or there are fewer bins than levels: the maximum.
// The first bin is replaced by the second before: zeros, of which ReLU makes many, quantize without error anyway.
// O(bins * levels) by prefix sums.
double entropy_threshold(std::span<const std::uint64_t> counts, double width, std::size_t levels);

// The smallest edge that at least `percentile` percent of the counts lie below; 0 < percentile <= 100.
double percentile_threshold(std::span<const std::uint64_t> counts, double width, double percentile);

// The bin centre, from bin levels + 1 on, for which rounding the bin centres to multiples of threshold/levels
// (half to even, clipped at `levels`) has the smallest sum of squared errors; the first one on ties.
// With no such bin: the maximum. O(bins^2).
double mse_threshold(std::span<const std::uint64_t> counts, double width, std::size_t levels);

}  // namespace deploy
