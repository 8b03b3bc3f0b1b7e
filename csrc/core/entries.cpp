#include "core/entries.hpp"

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>

namespace deploy {
namespace {

std::vector<std::int64_t> removed_channels(std::int64_t width, std::span<const std::int64_t> kept, std::size_t group) {
    if (width < 0) {
        throw std::invalid_argument("group " + std::to_string(group) + ": a width cannot be " + std::to_string(width));
    }
    std::vector<bool> stays(static_cast<std::size_t>(width), false);
    for (const std::int64_t channel : kept) {
        if (channel < 0 || channel >= width) {
            throw std::invalid_argument("group " + std::to_string(group) + ": channel " + std::to_string(channel) +
                                        " is outside 0.." + std::to_string(width) + " (exclusive)");
        }
        stays[static_cast<std::size_t>(channel)] = true;
    }
    std::vector<std::int64_t> removed;
    for (std::int64_t channel = 0; channel < width; ++channel) {
        if (!stays[static_cast<std::size_t>(channel)]) {
            removed.push_back(channel);
        }
    }
    return removed;
}

void check(const AxisSlice& slice, std::span<const std::int64_t> widths, std::span<const std::int64_t> axis_sizes,
           std::size_t number) {
    const std::string name = "slice " + std::to_string(number) + ": ";
    if (slice.group < 0 || static_cast<std::size_t>(slice.group) >= widths.size() || slice.axis < 0 ||
        static_cast<std::size_t>(slice.axis) >= axis_sizes.size()) {
        throw std::invalid_argument(name + "there is no such group or axis");
    }
    const std::int64_t width = widths[static_cast<std::size_t>(slice.group)];
    const std::int64_t size = axis_sizes[static_cast<std::size_t>(slice.axis)];
    // Divided instead of multiplied, so nothing overflows.
    const bool fits = slice.offset >= 0 && slice.offset <= size && slice.repeat >= 1 && slice.step >= 1 &&
                      (width == 0 || (slice.repeat <= size - slice.offset &&
                                      width - 1 <= (size - slice.offset - slice.repeat) / slice.step));
    if (!fits) {
        throw std::invalid_argument(name + "its entries lie outside an axis of " + std::to_string(size));
    }
}

}  // namespace

std::vector<std::vector<std::int64_t>> kept_entries(std::span<const std::int64_t> widths,
                                                    std::span<const std::span<const std::int64_t>> kept,
                                                    std::span<const std::int64_t> axis_sizes,
                                                    std::span<const AxisSlice> slices) {
    if (widths.size() != kept.size()) {
        throw std::invalid_argument("expected the kept channels of " + std::to_string(widths.size()) + " groups, got " +
                                    std::to_string(kept.size()));
    }
    std::vector<std::vector<std::int64_t>> removed;
    for (std::size_t group = 0; group < widths.size(); ++group) {
        removed.push_back(removed_channels(widths[group], kept[group], group));
    }
    std::vector<std::vector<std::size_t>> of_axis(axis_sizes.size());  // numbers of each axis's slices
    for (std::size_t i = 0; i < slices.size(); ++i) {
        check(slices[i], widths, axis_sizes, i);
        of_axis[static_cast<std::size_t>(slices[i].axis)].push_back(i);
    }
    std::vector<std::vector<std::int64_t>> result;
    std::vector<std::uint8_t> stays;  // bytes: bits are slow to fill
    for (std::size_t axis = 0; axis < axis_sizes.size(); ++axis) {
        if (axis_sizes[axis] < 0) {
            throw std::invalid_argument("axis " + std::to_string(axis) + ": a size cannot be " +
                                        std::to_string(axis_sizes[axis]));
        }
        stays.assign(static_cast<std::size_t>(axis_sizes[axis]), std::uint8_t{1});
        for (const std::size_t number : of_axis[axis]) {
            const AxisSlice& slice = slices[number];
            for (const std::int64_t channel : removed[static_cast<std::size_t>(slice.group)]) {
                std::fill_n(stays.begin() + slice.offset + channel * slice.step, slice.repeat, std::uint8_t{0});
            }
        }
        // Every entry is written and counts if it stays: which ones do is random, and a branch would be mispredicted.
        std::vector<std::int64_t>& entries = result.emplace_back(stays.size());
        std::size_t count = 0;
        for (std::size_t entry = 0; entry < stays.size(); ++entry) {
            entries[count] = static_cast<std::int64_t>(entry);
            count += stays[entry];
        }
        entries.resize(count);
    }
    return result;
}

}  // namespace deploy
