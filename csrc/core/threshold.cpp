#include "core/threshold.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace deploy {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double tie = 1e-10;  // nats; far above the rounding of the sums, far below any real difference

std::span<const std::uint64_t> checked(std::span<const std::uint64_t> counts, double width) {
    if (!(width > 0) || !std::isfinite(width)) {
        throw std::invalid_argument("bin_width must be positive and finite, not " + std::to_string(width));
    }
    while (!counts.empty() && counts.back() == 0) {
        counts = counts.first(counts.size() - 1);
    }
    if (counts.empty()) {
        throw std::invalid_argument("the histogram is empty; count some values first");
    }
    return counts;
}

void check_levels(std::size_t levels, std::size_t least) {
    if (levels < least) {
        throw std::invalid_argument("levels must be at least " + std::to_string(least) + ", not " +
                                    std::to_string(levels));
    }
}

double xlogx(double x) {
    return x > 0 ? x * std::log(x) : 0.0;
}

// Sums over the first i bins, at index i.
struct Prefix {
    std::vector<double> mass;
    std::vector<double> filled;   // number of non-empty bins
    std::vector<double> entropy;  // sum of c*log(c)
};

Prefix prefix_sums(std::span<const double> counts) {
    Prefix sums{{0.0}, {0.0}, {0.0}};
    for (const double count : counts) {
        sums.mass.push_back(sums.mass.back() + count);
        sums.filled.push_back(sums.filled.back() + (count > 0 ? 1.0 : 0.0));
        sums.entropy.push_back(sums.entropy.back() + xlogx(count));
    }
    return sums;
}

// KL(P || Q) for the first `bins` bins. With T the mass of P and S that of Q:
//   T*KL = sum P*log(P) - sum P*log(Q) + T*log(S/T), and Q is constant on a group's non-empty bins.
double divergence(std::span<const double> counts, const Prefix& sums, std::size_t bins, std::size_t levels) {
    const double total = sums.mass.back();
    const double inside = sums.mass[bins];
    const double tail = total - inside;
    const double last = counts[bins - 1];
    if (last == 0 && tail > 0) {
        return infinity;
    }
    double cross = 0.0;
    std::size_t begin = 0;
    for (std::size_t group = 0; group < levels; ++group) {
        // The first bin of the next group: the smallest k with k*levels >= (group + 1)*bins.
        const std::size_t end = ((group + 1) * bins + levels - 1) / levels;
        const double mass = sums.mass[end] - sums.mass[begin];
        if (mass > 0) {
            const double spread = std::log(mass / (sums.filled[end] - sums.filled[begin]));
            cross += (mass + (end == bins ? tail : 0.0)) * spread;
        }
        begin = end;
    }
    const double own = sums.entropy[bins - 1] + xlogx(last + tail);
    return (own - cross) / total + std::log(inside / total);
}

}  // namespace

double entropy_threshold(std::span<const std::uint64_t> counts, double width, std::size_t levels) {
    counts = checked(counts, width);
    check_levels(levels, 2);
    std::vector<double> masses(counts.begin(), counts.end());
    if (masses.size() > 1) {
        masses[0] = masses[1];
    }
    const Prefix sums = prefix_sums(masses);
    double smallest = infinity;
    std::size_t best = counts.size();
    for (std::size_t bins = levels; bins <= masses.size(); ++bins) {
        const double loss = divergence(masses, sums, bins, levels);
        if (loss < infinity && loss <= smallest + tie) {
            smallest = std::min(smallest, loss);
            best = bins;
        }
    }
    return static_cast<double>(best) * width;
}

double percentile_threshold(std::span<const std::uint64_t> counts, double width, double percentile) {
    counts = checked(counts, width);
    if (!(percentile > 0 && percentile <= 100)) {
        throw std::invalid_argument("percentile must be above 0 and at most 100, not " + std::to_string(percentile));
    }
    double total = 0.0;
    for (const std::uint64_t count : counts) {
        total += static_cast<double>(count);
    }
    const double wanted = percentile / 100.0 * total;
    double below = 0.0;
    std::size_t bins = 0;
    while (bins < counts.size() && below < wanted) {
        below += static_cast<double>(counts[bins++]);
    }
    return static_cast<double>(bins) * width;
}

double mse_threshold(std::span<const std::uint64_t> counts, double width, std::size_t levels) {
    counts = checked(counts, width);
    check_levels(levels, 1);
    std::vector<double> centres;  // of the non-empty bins, in bins
    std::vector<double> weights;
    for (std::size_t i = 0; i < counts.size(); ++i) {
        if (counts[i] > 0) {
            centres.push_back(static_cast<double>(i) + 0.5);
            weights.push_back(static_cast<double>(counts[i]));
        }
    }
    // Adding and subtracting 1.5 * 2^52 rounds half to even, and unlike std::nearbyint it vectorizes everywhere.
    constexpr double rounder = 0x1.8p52;
    const auto top = static_cast<double>(levels);
    double smallest = infinity;
    double best = static_cast<double>(counts.size());
    for (std::size_t i = std::min(levels, counts.size()) + 1; i < counts.size(); ++i) {
        const double threshold = static_cast<double>(i) + 0.5;
        const double step = threshold / top;
        double loss = 0.0;
        for (std::size_t k = 0; k < centres.size(); ++k) {
            const double rounded = (centres[k] / step + rounder) - rounder;
            const double error = std::min(rounded, top) * step - centres[k];
            loss += weights[k] * error * error;
        }
        if (loss < smallest) {
            smallest = loss;
            best = threshold;
        }
    }
    return best * width;
}

}  // namespace deploy
