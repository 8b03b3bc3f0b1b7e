#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace deploy {

enum class Interpolation { bilinear, bicubic };

// Weights that turn `from` pixels into `to` along one axis, widened for shrinking so that every pixel counts
// (antialiasing), in fixed point: what Pillow's Image.resize uses, so that results are equal to its byte for byte.
struct Taps {
    struct Window {
        std::size_t begin = 0;  // first source pixel
        std::size_t size = 0;
        std::size_t offset = 0;  // of its weights
    };
    std::vector<Window> windows;  // one for each of the result's pixels that were asked for
    std::vector<std::int32_t> weights;

    std::span<const std::int32_t> of(const Window& window) const {
        return std::span(weights).subspan(window.offset, window.size);
    }
};

// The taps of the pixels first..first+count-1 of a result of `to` pixels. Throws std::invalid_argument where those do
// not exist or a size is zero.
Taps taps(std::size_t from, std::size_t to, std::size_t first, std::size_t count, Interpolation interpolation);

// One row of `channels` interleaved bytes a pixel through horizontal `taps`, into windows.size() * channels bytes.
void resample_row(std::span<const std::uint8_t> row, std::size_t channels, const Taps& taps,
                  std::span<std::uint8_t> result);

// One row of the result as the weighted sum of equally long rows; rows[k] is weighted by weights[k].
void blend_rows(std::span<const std::uint8_t* const> rows, std::span<const std::int32_t> weights,
                std::span<std::int32_t> sums, std::span<std::uint8_t> result);

}  // namespace deploy
