#include "core/compress.hpp"

#include <algorithm>
#include <bit>
#include <functional>

#include "core/x86.hpp"

namespace deploy {
namespace {

constexpr std::size_t lanes = 16;
// Fewer of a mask's items than this on average, and copying them one by one is as fast.
constexpr std::size_t worth = 2;

}  // namespace

Masks compress_masks(std::span<const std::uint32_t> offsets) {
    if (!has_avx512() || offsets.empty()) {
        return {};
    }
    // Pairs of 2-byte items may begin between two of the 4-byte items that a mask knows.
    const bool whole = std::ranges::all_of(offsets, [](std::uint32_t offset) { return offset % 4 == 0; });
    const bool ascending = std::ranges::adjacent_find(offsets, std::greater_equal<>()) == offsets.end();
    if (!whole || !ascending) {
        return {};
    }
    const std::size_t count = offsets.back() / (4 * lanes) + 1;
    if (offsets.size() < worth * count) {
        return {};
    }
    Masks masks(count);
    for (const std::uint32_t offset : offsets) {
        const std::uint32_t item = offset / 4;
        masks[item / lanes] = static_cast<std::uint16_t>(masks[item / lanes] | 1U << item % lanes);
    }
    return masks;
}

#ifdef PYDEPLOY_X86
// Loads and stores are masked as well: nothing outside the row's items is touched.
[[gnu::target("avx512f,popcnt")]] void compress_row(std::span<const std::uint16_t> masks, const std::byte* source,
                                                    std::byte* target) {
    for (const std::uint16_t mask : masks) {
        const int kept = std::popcount(mask);
        const auto low = static_cast<__mmask16>((1U << kept) - 1U);
        _mm512_mask_storeu_epi32(target, low,
                                 _mm512_maskz_compress_epi32(mask, _mm512_maskz_loadu_epi32(mask, source)));
        source += 4 * lanes;
        target += 4 * kept;
    }
}
#else
void compress_row(std::span<const std::uint16_t>, const std::byte*, std::byte*) {
}  // there are no masks to call it with
#endif

}  // namespace deploy
