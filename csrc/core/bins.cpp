#include "core/bins.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "core/x86.hpp"

namespace deploy {
namespace {

constexpr std::uint32_t magnitude_mask = 0x7fffffffU;
constexpr std::uint32_t infinity_bits = 0x7f800000U;

// Integers in the order of the floats they stand for; integer minima vectorize, float minima do not.
std::int32_t ordered(std::uint32_t bits) {
    const auto number = static_cast<std::int32_t>(bits);
    return number ^ ((number >> 31) & 0x7fffffff);
}

double from_ordered(std::int32_t number) {
    const auto bits = static_cast<std::uint32_t>(number ^ ((number >> 31) & 0x7fffffff));
    return static_cast<double>(std::bit_cast<float>(bits)) + 0.0;  // -0 becomes 0
}

// Multiplying by a power of two is exact. 2^-127, for two bins and huge values, is not a normal float: so the product
// is at most halved once more, as an integer.
struct Scale {
    Scale(int exponent, std::uint32_t half)
        : factor(std::ldexp(1.0F, -std::min(exponent, 126))),
          shift(std::max(0, exponent - 126)),
          largest(std::nextafter(std::ldexp(static_cast<float>(half), shift), 0.0F)) {}

    float factor;
    int shift;
    float largest;  // scaled magnitude: another thread that writes to the values meanwhile gets wrong bins, but bins
};

std::size_t portable(std::span<const float> values, Scale scale, std::uint32_t half, std::uint32_t* bins) {
    // Two loops, because only the first one vectorizes.
    for (std::size_t i = 0; i < values.size(); ++i) {
        const float scaled = std::abs(values[i]) * scale.factor;
        const auto index = static_cast<std::int32_t>(scaled < scale.largest ? scaled : scale.largest) >> scale.shift;
        bins[i] = static_cast<std::uint32_t>(index) + (values[i] < 0.0F ? half : 0U);
    }
    std::size_t kept = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
        const std::uint32_t bin = bins[i];
        bins[kept] = bin;
        kept += bin != 0 ? 1U : 0U;
    }
    return kept;
}

#ifdef PYDEPLOY_X86
// Sixteen values at a time; the bins in between 0 are packed by one instruction.
[[gnu::target("avx512f,popcnt")]] std::size_t avx512(std::span<const float> values, Scale scale, std::uint32_t half,
                                                     std::uint32_t* bins) {
    const __m512 factor = _mm512_set1_ps(scale.factor);
    const __m512 largest = _mm512_set1_ps(scale.largest);  // also in place of NaN, as the second operand
    const __m128i shift = _mm_cvtsi32_si128(scale.shift);
    const __m512i below = _mm512_set1_epi32(static_cast<int>(half));
    std::size_t kept = 0;
    for (std::size_t i = 0; i < values.size(); i += 16) {
        const __m512 value = _mm512_loadu_ps(values.data() + i);
        const __m512 scaled = _mm512_min_ps(_mm512_mul_ps(_mm512_abs_ps(value), factor), largest);
        const __m512i index = _mm512_srl_epi32(_mm512_cvttps_epi32(scaled), shift);
        const __mmask16 negative = _mm512_cmp_ps_mask(value, _mm512_setzero_ps(), _CMP_LT_OQ);
        const __m512i bin = _mm512_mask_add_epi32(index, negative, index, below);
        const __mmask16 above = _mm512_test_epi32_mask(bin, bin);
        _mm512_storeu_si512(bins + kept, _mm512_maskz_compress_epi32(above, bin));
        kept += static_cast<std::size_t>(std::popcount(static_cast<unsigned>(above)));
    }
    return kept;
}

// The extremes of `ordered` values, sixteen at a time; without it, x86 has no minimum of four integers in one
// instruction.
[[gnu::target("avx512f")]] void widen_avx512(std::span<const float> values, std::int32_t& low, std::int32_t& high) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i lows = _mm512_set1_epi32(low);
    __m512i highs = _mm512_set1_epi32(high);
    for (std::size_t i = 0; i < values.size(); i += 16) {
        const __m512i bits = _mm512_loadu_si512(values.data() + i);
        const __m512i number = _mm512_xor_si512(bits, _mm512_and_si512(_mm512_srai_epi32(bits, 31), magnitude));
        lows = _mm512_min_epi32(lows, number);
        highs = _mm512_max_epi32(highs, number);
    }
    low = _mm512_reduce_min_epi32(lows);
    high = _mm512_reduce_max_epi32(highs);
}
#endif

}  // namespace

BlockScan scan(std::span<const float> values) {
    // Anything that is not finite lies beyond all finite values: most blocks need no closer look than this.
    std::int32_t low = std::numeric_limits<std::int32_t>::max();
    std::int32_t high = std::numeric_limits<std::int32_t>::min();
    std::size_t done = 0;
#ifdef PYDEPLOY_X86
    if (has_avx512()) {
        done = values.size() / 16 * 16;
        widen_avx512(values.first(done), low, high);
    }
#endif
    for (const float value : values.subspan(done)) {
        const std::int32_t number = ordered(std::bit_cast<std::uint32_t>(value));
        low = std::min(low, number);
        high = std::max(high, number);
    }
    const bool finite = high < ordered(infinity_bits) && low > ordered(infinity_bits | ~magnitude_mask);
    if (!finite) {
        low = std::numeric_limits<std::int32_t>::max();
        high = std::numeric_limits<std::int32_t>::min();
        for (const float value : values) {
            if (std::isfinite(value)) {
                low = std::min(low, ordered(std::bit_cast<std::uint32_t>(value)));
                high = std::max(high, ordered(std::bit_cast<std::uint32_t>(value)));
            }
        }
    }
    if (low > high) {
        return {finite, 1.0, 0.0};
    }
    return {finite, from_ordered(low), from_ordered(high)};
}

std::size_t bins_above_zero(std::span<const float> values, int exponent, std::uint32_t half,
                            std::span<std::uint32_t> bins) {
    const Scale scale(exponent, half);
    std::size_t kept = 0;
    std::size_t done = 0;
#ifdef PYDEPLOY_X86
    if (has_avx512()) {
        done = values.size() / 16 * 16;
        kept = avx512(values.first(done), scale, half, bins.data());
    }
#endif
    return kept + portable(values.subspan(done), scale, half, bins.data() + kept);
}

}  // namespace deploy
