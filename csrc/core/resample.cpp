#include "core/resample.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace deploy {
namespace {

constexpr int precision = 22;  // bits behind the point: 32, less 8 for the value, less 2 for negative lobes
constexpr std::int32_t one_half = 1 << (precision - 1);

double weight(double distance, Interpolation interpolation) {
    const double x = std::abs(distance);
    if (interpolation == Interpolation::bilinear) {
        return x < 1.0 ? 1.0 - x : 0.0;
    }
    constexpr double a = -0.5;  // Keys, 1981
    if (x < 1.0) {
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    }
    return x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * a : 0.0;
}

std::uint8_t rounded(std::int32_t sum) {
    return static_cast<std::uint8_t>(std::clamp(sum >> precision, 0, 255));
}

template <std::size_t channels>
void resample_pixels(const std::uint8_t* row, const Taps& taps, std::uint8_t* result) {
    for (const Taps::Window& window : taps.windows) {
        std::int32_t sums[channels];
        std::fill_n(sums, channels, one_half);
        const std::uint8_t* pixel = row + window.begin * channels;
        const std::int32_t* weights = taps.weights.data() + window.offset;
        for (std::size_t k = 0; k < window.size; ++k, pixel += channels) {
            for (std::size_t c = 0; c < channels; ++c) {
                sums[c] += weights[k] * pixel[c];
            }
        }
        for (std::size_t c = 0; c < channels; ++c) {
            *result++ = rounded(sums[c]);
        }
    }
}

}  // namespace

Taps taps(std::size_t from, std::size_t to, std::size_t first, std::size_t count, Interpolation interpolation) {
    if (from == 0 || to == 0 || first + count > to) {
        throw std::invalid_argument("cannot resize " + std::to_string(from) + " pixels to " + std::to_string(to) +
                                    " and take " + std::to_string(count) + " from " + std::to_string(first));
    }
    const double scale = static_cast<double>(from) / static_cast<double>(to);
    const double stretch = std::max(scale, 1.0);
    const double support = (interpolation == Interpolation::bilinear ? 1.0 : 2.0) * stretch;
    Taps result;
    std::vector<double> exact;
    for (std::size_t i = first; i < first + count; ++i) {
        const double center = (static_cast<double>(i) + 0.5) * scale;
        const auto begin = static_cast<std::size_t>(std::max(center - support + 0.5, 0.0));
        const auto end = std::min(static_cast<std::size_t>(center + support + 0.5), from);
        exact.clear();
        double sum = 0.0;
        for (std::size_t k = begin; k < end; ++k) {
            exact.push_back(weight((static_cast<double>(k) - center + 0.5) * (1.0 / stretch), interpolation));
            sum += exact.back();
        }
        result.windows.push_back({begin, end - begin, result.weights.size()});
        for (const double value : exact) {
            const double fixed = (sum != 0.0 ? value / sum : value) * (1 << precision);
            result.weights.push_back(static_cast<std::int32_t>(fixed < 0 ? fixed - 0.5 : fixed + 0.5));
        }
    }
    return result;
}

void resample_row(std::span<const std::uint8_t> row, std::size_t channels, const Taps& taps,
                  std::span<std::uint8_t> result) {
    switch (channels) {
        case 1:
            return resample_pixels<1>(row.data(), taps, result.data());
        case 3:
            return resample_pixels<3>(row.data(), taps, result.data());
        case 4:
            return resample_pixels<4>(row.data(), taps, result.data());
        default:
            throw std::invalid_argument("images to resize have 1, 3 or 4 channels, not " + std::to_string(channels));
    }
}

void blend_rows(std::span<const std::uint8_t* const> rows, std::span<const std::int32_t> weights,
                std::span<std::int32_t> sums, std::span<std::uint8_t> result) {
    std::ranges::fill(sums, one_half);
    for (std::size_t k = 0; k < rows.size(); ++k) {
        const std::uint8_t* row = rows[k];
        const std::int32_t factor = weights[k];
        for (std::size_t i = 0; i < sums.size(); ++i) {
            sums[i] += factor * row[i];
        }
    }
    for (std::size_t i = 0; i < sums.size(); ++i) {
        result[i] = rounded(sums[i]);
    }
}

}  // namespace deploy
