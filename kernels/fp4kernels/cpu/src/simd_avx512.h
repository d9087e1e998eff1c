// AVX-512 with VNNI and VBMI: 16 columns a vector, one vector a panel.
//
// A line of 64 bytes holds 8 k-values of 16 columns. `vpermb` looks up 64 bytes at once in a table
// of 64 entries; it uses six bits of an index, so the 16 values stand there four times and no
// masking is needed: the low nibbles come from the line as it is, the high ones after a shift.
#pragma once
#include <immintrin.h>

#include "numbers.h"

namespace simd {

using Int = __m512i;
using Float = __m512;
constexpr int LANES = 16;
constexpr int BIAS = 12;  // weights decode to unsigned bytes so much too large
// looking products up pays where several rows share the columns that are prepared for it
constexpr Scheme FAST = !NVFP4 ? Scheme::MAGIC : MR > 8 ? Scheme::LOOKUP : Scheme::MULTIPLY;
constexpr float EPILOGUE = NVFP4 ? 64.0f : 1.0f;  // 2^8 for half-precision scales, 1/4 for doubled values

alignas(64) constexpr uint8_t WEIGHTS[64] = {
    12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,
    12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,
    12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,
    12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

inline Int broadcast(const void* x) { return _mm512_set1_epi32(*static_cast<const int32_t*>(x)); }
inline Float load(const float* x) { return _mm512_loadu_ps(x); }
inline void store(float* to, Float x) { _mm512_storeu_ps(to, x); }

inline Int low(const uint8_t* line) {
    return _mm512_permutexvar_epi8(_mm512_loadu_si512(line), _mm512_load_si512(WEIGHTS));
}
inline Int high(const uint8_t* line) {
    return _mm512_permutexvar_epi8(_mm512_srli_epi16(_mm512_loadu_si512(line), 4), _mm512_load_si512(WEIGHTS));
}
inline Int dot(Int sum, Int weights, Int four) { return _mm512_dpbusd_epi32(sum, weights, four); }

// the 16 column scales of a block, the scale of a row, and how a sum begins and ends under them
template <Scheme>
struct Scales;

template <>
struct Scales<Scheme::MAGIC> {
    struct Column {  // the exponent, where that of a float stands
        Int bits;
        Column() = default;
        Column(const uint8_t* bytes, const uint8_t* header) {
            __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
            // only blocks of zeros lie outside the header's bounds
            raw = _mm_min_epu8(_mm_max_epu8(raw, _mm_set1_epi8(int8_t(header[0]))), _mm_set1_epi8(int8_t(header[1])));
            bits = _mm512_slli_epi32(_mm512_cvtepu8_epi32(raw), 23);
        }
    };
    struct Row {
        Int bits;
        explicit Row(const uint32_t* factor) : bits(broadcast(factor)) {}
    };
    static Int begin(Int start, const Column& column) { return _mm512_add_epi32(start, column.bits); }
    static Float finish(Float to, Int sum, const Column& column, const Row& row) {
        const Float magic = _mm512_castsi512_ps(_mm512_add_epi32(row.bits, column.bits));
        return _mm512_add_ps(to, _mm512_sub_ps(_mm512_castsi512_ps(sum), magic));
    }
};

// E4M3 through half precision, which reads it 2^8 too small: EPILOGUE makes up for it
inline Float from_e4m3(const uint8_t* bytes) {
    const __m256i sign = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    const __m256i half = _mm256_or_si256(
        _mm256_slli_epi16(_mm256_and_si256(sign, _mm256_set1_epi16(0x7F)), 7),
        _mm256_and_si256(sign, _mm256_set1_epi16(int16_t(0x8000))));
    return _mm512_cvtph_ps(half);
}

template <>
struct Scales<Scheme::MULTIPLY> {
    struct Column {
        Float scale;
        Column() = default;
        Column(const uint8_t* bytes, const uint8_t*) : scale(from_e4m3(bytes)) {}
    };
    struct Row {
        Float scale;
        explicit Row(const uint32_t* factor) : scale(_mm512_castsi512_ps(broadcast(factor))) {}
    };
    static Int begin(Int start, const Column&) { return start; }
    static Float finish(Float to, Int sum, const Column& column, const Row& row) {
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(column.scale, row.scale), to);
    }
};

// A scale of E4M3 has eight mantissas. A row of this table holds the scale of one byte times all of
// them, and zeros: a permutation picks those of 16 columns, and what is left is to add exponents.
struct Products {
    alignas(64) float of[128][16];
    constexpr Products() : of() {
        for (int byte = 0; byte < 128; ++byte) {
            const int exponent = byte >> 3;
            float scale = exponent ? 1 + (byte & 7) / 8.0f : (byte & 7) / 4.0f;
            for (int e = exponent; e < 7; ++e) scale /= 2;
            for (int e = 7; e < exponent; ++e) scale *= 2;
            for (int i = 0; i < 8; ++i) of[byte][i] = scale * (1 + i / 8.0f);
        }
    }
};
inline constexpr Products PRODUCTS;

template <>
struct Scales<Scheme::LOOKUP> {
    struct Column {
        Int place, exponent;  // in a row of the table; what is to be added to its bits
        Column() = default;
        Column(const uint8_t* bytes, const uint8_t*) {
            const Int bits = _mm512_castps_si512(from_e4m3(bytes));
            const __mmask16 nonzero = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x7FFFFFFF));
            const Int mantissa = _mm512_and_si512(_mm512_srli_epi32(bits, 20), _mm512_set1_epi32(7));
            const Int sign_and_exponent = _mm512_and_si512(bits, _mm512_set1_epi32(int32_t(0xFF800000)));
            place = _mm512_mask_mov_epi32(_mm512_set1_epi32(8), nonzero, mantissa);
            exponent = _mm512_maskz_sub_epi32(nonzero, sign_and_exponent, _mm512_set1_epi32(127 << 23));
        }
    };
    struct Row {
        Float products;
        explicit Row(const uint32_t* factor) : products(_mm512_load_ps(PRODUCTS.of[*factor])) {}
    };
    static Int begin(Int start, const Column&) { return start; }
    static Float finish(Float to, Int sum, const Column& column, const Row& row) {
        const Int picked = _mm512_castps_si512(_mm512_permutexvar_ps(column.place, row.products));
        const Float scale = _mm512_castsi512_ps(_mm512_add_epi32(picked, column.exponent));
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, to);
    }
};

}  // namespace simd
