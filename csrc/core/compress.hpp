#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace deploy {

// Which 4-byte items of a row stay: bit i of mask m stands for item 16 * m + i.
using Masks = std::vector<std::uint16_t>;

// The masks for the byte offsets of 4-byte blocks, where compress_row pays: empty on processors without AVX-512, for
// offsets out of order or not all multiples of 4, and where few of the row's items stay.
Masks compress_masks(std::span<const std::uint32_t> offsets);

// Copies the items that stay to `target`, side by side. `masks` must not be empty.
void compress_row(std::span<const std::uint16_t> masks, const std::byte* source, std::byte* target);

}  // namespace deploy
