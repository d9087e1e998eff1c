// E2M1 codes to int8, twice their values.
#pragma once
#include <cstdint>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

struct ByteTable {
    uint16_t pair[256];  // two int8, the low nibble's first
    int8_t sum[256];
    constexpr ByteTable() : pair(), sum() {
        constexpr int twice[8] = {0, 1, 2, 3, 4, 6, 8, 12};
        for (int byte = 0; byte < 256; ++byte) {
            const int low = byte & 8 ? -twice[byte & 7] : twice[byte & 7];
            const int high = byte & 128 ? -twice[(byte >> 4) & 7] : twice[(byte >> 4) & 7];
            pair[byte] = uint16_t((low & 255) | ((high & 255) << 8));
            sum[byte] = int8_t(low + high);
        }
    }
};
inline constexpr ByteTable TABLE;

struct BlockFacts {
    int sum;    // of the values written
    bool zero;  // all of them
};

constexpr int64_t IN_LINE = 64 / (BLOCK / 2);  // blocks whose codes share a cache line

// one block of codes to int8, all signs flipped where `flip` is 0x88
#if defined(__AVX2__)
inline BlockFacts expand(const uint8_t* codes, uint8_t flip, uint32_t* to) {
    const __m128i table = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    const __m128i nibble = _mm_set1_epi8(15), one = _mm_set1_epi8(1);
    const auto* from = reinterpret_cast<const __m128i*>(codes);
    const __m128i raw = BLOCK == 32 ? _mm_loadu_si128(from) : _mm_loadl_epi64(from);
    const __m128i bytes = _mm_xor_si128(raw, _mm_set1_epi8(int8_t(flip)));
    const __m128i even = _mm_shuffle_epi8(table, _mm_and_si128(bytes, nibble));
    const __m128i odd = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble));
    auto* out = reinterpret_cast<__m128i*>(to);
    _mm_storeu_si128(out, _mm_unpacklo_epi8(even, odd));
    if (BLOCK == 32) _mm_storeu_si128(out + 1, _mm_unpackhi_epi8(even, odd));
    // sums of two, of four, of eight; bytes past a short block decode to zero of either sign
    const __m128i pairs = _mm_maddubs_epi16(one, _mm_add_epi8(even, odd));
    const __m128i fours = _mm_madd_epi16(pairs, _mm_set1_epi16(1));
    const __m128i eights = _mm_add_epi32(fours, _mm_unpackhi_epi64(fours, fours));
    const int sum = _mm_cvtsi128_si32(eights) + _mm_extract_epi32(eights, 1);
    return {sum, _mm_testz_si128(raw, _mm_set1_epi8(0x77)) != 0};
}
#else
inline BlockFacts expand(const uint8_t* codes, uint8_t flip, uint32_t* to) {
    int sum = 0, any = 0;
    for (int i = 0; i < BLOCK / 2; i += 2) {
        const uint8_t one = codes[i] ^ flip, other = codes[i + 1] ^ flip;
        to[i / 2] = TABLE.pair[one] | uint32_t(TABLE.pair[other]) << 16;
        sum += TABLE.sum[one] + TABLE.sum[other];
        any |= one | other;
    }
    return {sum, (any & 0x77) == 0};
}
#endif

// IN_LINE blocks at once, `stride` dwords apart in `to`, and the sums of each. False, with nothing of
// use written, where it cannot: for blocks of zeros, or scales that are zero, negative or NaN.
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
inline bool expand_line(const uint8_t* codes, const uint8_t* scales, uint32_t* to, int64_t stride, int32_t* sums) {
    const __m512i raw = _mm512_loadu_si512(codes);
    const __m128i bytes = NVFP4 ? _mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales))
                                : _mm_loadu_si32(scales);
    // as signed bytes: of E4M3, 1 to 126 are left; E8M0 has but one NaN
    const uint32_t present = (1 << IN_LINE) - 1;
    const uint32_t good = NVFP4 ? _mm_cmpgt_epi8_mask(bytes, _mm_setzero_si128()) & _mm_cmplt_epi8_mask(bytes, _mm_set1_epi8(0x7F))
                                : _mm_cmpneq_epi8_mask(bytes, _mm_set1_epi8(-1));
    const __m512i nonzero = _mm512_and_si512(raw, _mm512_set1_epi8(0x77));
    const bool whole = NVFP4 ? _mm512_test_epi64_mask(nonzero, nonzero) == 0xFF
                             : (_mm512_test_epi64_mask(nonzero, nonzero) | _mm512_test_epi64_mask(_mm512_permutex_epi64(nonzero, 0xB1), _mm512_permutex_epi64(nonzero, 0xB1))) == 0xFF;
    if ((good & present) != present || !whole) return false;
    const __m512i nibble = _mm512_set1_epi8(15), one = _mm512_set1_epi8(1);
    const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
    const __m512i even = _mm512_shuffle_epi8(table, _mm512_and_si512(raw, nibble));
    const __m512i odd = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(raw, 4), nibble));
    // a lane of 16 bytes holds 32 codes: these in order are the lane of `low`, then that of `high`
    const __m512i low = _mm512_unpacklo_epi8(even, odd), high = _mm512_unpackhi_epi8(even, odd);
    const auto total = [](__m512i fours) {  // of a lane, in all of it
        const __m512i eights = _mm512_add_epi32(fours, _mm512_shuffle_epi32(fours, _MM_PERM_BADC));
        return _mm512_add_epi32(eights, _mm512_shuffle_epi32(eights, _MM_PERM_CDAB));
    };
    const __m512i none = _mm512_setzero_si512();
    alignas(64) int32_t first[16], second[16];
    const __m512i of_low = _mm512_dpbusd_epi32(none, one, low);
    _mm512_store_si512(first, total(NVFP4 ? of_low : _mm512_dpbusd_epi32(of_low, one, high)));
    if (NVFP4) _mm512_store_si512(second, total(_mm512_dpbusd_epi32(none, one, high)));
    const auto put = [](uint32_t* at, __m128i sixteen) { _mm_storeu_si128(reinterpret_cast<__m128i*>(at), sixteen); };
    const auto lane = [&](auto i) {
        const __m128i front = _mm512_extracti32x4_epi32(low, i), back = _mm512_extracti32x4_epi32(high, i);
        if (NVFP4) {
            put(to + 2 * i * stride, front), put(to + (2 * i + 1) * stride, back);
            sums[2 * i] = first[4 * i], sums[2 * i + 1] = second[4 * i];
        } else {
            put(to + i * stride, front), put(to + i * stride + 4, back);
            sums[i] = first[4 * i];
        }
    };
    lane(std::integral_constant<int, 0>()), lane(std::integral_constant<int, 1>());
    lane(std::integral_constant<int, 2>()), lane(std::integral_constant<int, 3>());
    return true;
}
#else
inline bool expand_line(const uint8_t*, const uint8_t*, uint32_t*, int64_t, int32_t*) { return false; }
#endif
