#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace deploy {

// Where the channels of one group lie along one axis: channel i occupies entries
// offset + i*step ... + repeat - 1. `group` and `axis` index the arguments of kept_entries.
struct AxisSlice {
    std::int64_t group;
    std::int64_t axis;
    std::int64_t offset;
    std::int64_t repeat;
    std::int64_t step;
};

// Entries of every axis that survive when group g keeps only the channels kept[g] of its widths[g], ascending.
// An entry that lies in no slice survives. Linear in the entries of all axes and slices.
// Throws std::invalid_argument for a channel outside its group and a slice outside its axis.
std::vector<std::vector<std::int64_t>> kept_entries(std::span<const std::int64_t> widths,
                                                    std::span<const std::span<const std::int64_t>> kept,
                                                    std::span<const std::int64_t> axis_sizes,
                                                    std::span<const AxisSlice> slices);

}  // namespace deploy
