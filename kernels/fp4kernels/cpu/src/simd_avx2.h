// AVX2, and VNNI where a CPU has it for short vectors: 8 columns a vector, two vectors a panel.
#pragma once
#include <immintrin.h>

#include "numbers.h"

namespace simd {

using Int = __m256i;
using Float = __m256;
constexpr int LANES = 8;
constexpr int BIAS = 12;  // weights decode to unsigned bytes so much too large
constexpr Scheme FAST = NVFP4 ? Scheme::MULTIPLY : Scheme::MAGIC;
constexpr float EPILOGUE = NVFP4 ? 64.0f : 1.0f;  // 2^8 for half-precision scales, 1/4 for doubled values

inline Int broadcast(const void* x) { return _mm256_set1_epi32(*static_cast<const int32_t*>(x)); }
inline Float load(const float* x) { return _mm256_loadu_ps(x); }
inline void store(float* to, Float x) { _mm256_storeu_ps(to, x); }
inline Int codes_at(const uint8_t* line) { return _mm256_loadu_si256(reinterpret_cast<const Int*>(line)); }

inline Int decode(Int codes) {
    const __m128i table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), _mm256_and_si256(codes, _mm256_set1_epi8(15)));
}
inline Int low(const uint8_t* line) { return decode(codes_at(line)); }
inline Int high(const uint8_t* line) { return decode(_mm256_srli_epi16(codes_at(line), 4)); }

inline Int dot(Int sum, Int weights, Int four) {
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sum, weights, four);
#else
    const Int pairs = _mm256_maddubs_epi16(weights, four);  // at most 2 * 24 * 12
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}

inline __m128i eight(const uint8_t* bytes) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)); }

template <Scheme>
struct Scales;

template <>
struct Scales<Scheme::MAGIC> {
    struct Column {  // the exponent, where that of a float stands
        Int bits;
        Column() = default;
        Column(const uint8_t* bytes, const uint8_t* header) {
            // only blocks of zeros lie outside the header's bounds
            const __m128i least = _mm_set1_epi8(int8_t(header[0])), most = _mm_set1_epi8(int8_t(header[1]));
            bits = _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_min_epu8(_mm_max_epu8(eight(bytes), least), most)), 23);
        }
    };
    struct Row {
        Int bits;
        explicit Row(const uint32_t* factor) : bits(broadcast(factor)) {}
    };
    static Int begin(Int start, const Column& column) { return _mm256_add_epi32(start, column.bits); }
    static Float finish(Float to, Int sum, const Column& column, const Row& row) {
        const Float magic = _mm256_castsi256_ps(_mm256_add_epi32(row.bits, column.bits));
        return _mm256_add_ps(to, _mm256_sub_ps(_mm256_castsi256_ps(sum), magic));
    }
};

template <>
struct Scales<Scheme::MULTIPLY> {
    struct Column {
        Float scale;
        Column() = default;
        Column(const uint8_t* bytes, const uint8_t*) {
            // E4M3 as half precision, 2^8 too small: EPILOGUE makes up for it
            const __m128i sign = _mm_cvtepi8_epi16(eight(bytes));
            scale = _mm256_cvtph_ps(_mm_or_si128(
                _mm_slli_epi16(_mm_and_si128(sign, _mm_set1_epi16(0x7F)), 7),
                _mm_and_si128(sign, _mm_set1_epi16(int16_t(0x8000)))));
        }
    };
    struct Row {
        Float scale;
        explicit Row(const uint32_t* factor) : scale(_mm256_castsi256_ps(broadcast(factor))) {}
    };
    static Int begin(Int start, const Column&) { return start; }
    static Float finish(Float to, Int sum, const Column& column, const Row& row) {
        return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(column.scale, row.scale), to);
    }
};

}  // namespace simd
