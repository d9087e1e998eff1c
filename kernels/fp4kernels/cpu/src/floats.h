// Weights in float, by the vectors of the machine: LANES columns of a line of panel16.
#pragma once
#include "loops.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace simd {

// E2M1 by code, and by magnitude
alignas(64) constexpr float E2M1[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
using Float = __m512;
using Int = __m512i;
inline Float load(const float* x) { return _mm512_loadu_ps(x); }
inline void store(float* to, Float x) { _mm512_storeu_ps(to, x); }
inline Float fma(Float sum, Float a, Float b) { return _mm512_fmadd_ps(a, b, sum); }
inline Int broadcast(const uint32_t* x) { return _mm512_set1_epi32(int32_t(*x)); }
inline Float even(Int pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline Float odd(Int pairs) { return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int32_t(0xFFFF0000)))); }
// the four bits from `shift` on of each dword; vpermps uses no others
inline Float e2m1(const uint8_t* line, int shift) {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(_mm512_loadu_si512(line), shift), _mm512_load_ps(E2M1));
}
#elif defined(__AVX2__)
using Float = __m256;
using Int = __m256i;
inline Float load(const float* x) { return _mm256_loadu_ps(x); }
inline void store(float* to, Float x) { _mm256_storeu_ps(to, x); }
inline Float fma(Float sum, Float a, Float b) { return _mm256_fmadd_ps(a, b, sum); }
inline Int broadcast(const uint32_t* x) { return _mm256_set1_epi32(int32_t(*x)); }
inline Float even(Int pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline Float odd(Int pairs) { return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(int32_t(0xFFFF0000)))); }
// vpermps uses three bits of an index, the magnitude; the fourth becomes the sign
inline Float e2m1(const uint8_t* line, int shift) {
    const Int raw = _mm256_loadu_si256(reinterpret_cast<const Int*>(line));
    const Float magnitude = _mm256_permutevar8x32_ps(_mm256_load_ps(E2M1), _mm256_srli_epi32(raw, shift));
    const Int sign = _mm256_and_si256(_mm256_slli_epi32(raw, 28 - shift), _mm256_set1_epi32(int32_t(0x80000000)));
    return _mm256_or_ps(magnitude, _mm256_castsi256_ps(sign));
}
#else
using Float = float __attribute__((vector_size(16)));
using Int = uint32_t __attribute__((vector_size(16)));
inline Float load(const float* x) {
    Float to;
    std::memcpy(&to, x, sizeof to);
    return to;
}
inline void store(float* to, Float x) { std::memcpy(to, &x, sizeof x); }
inline Float fma(Float sum, Float a, Float b) { return sum + a * b; }  // the product of two bf16 is exact
inline Int broadcast(const uint32_t* x) { return Int{} + *x; }
inline Float even(Int pairs) { return Float(pairs << 16); }
inline Float odd(Int pairs) { return Float(pairs & 0xFFFF0000u); }
inline Float e2m1(const uint8_t* line, int shift) {
    Float to;
    for (int i = 0; i < 4; ++i) to[i] = E2M1[line[i * 4 + shift / 8] >> shift % 8 & 15];
    return to;
}
#endif

constexpr int LANES = sizeof(Float) / sizeof(float);

typedef uint8_t LaneBytes __attribute__((vector_size(LANES)));
typedef uint32_t LaneBits __attribute__((vector_size(4 * LANES)));

// decode_scale() of LANES bytes
inline Float scales(const uint8_t* bytes) {
    LaneBytes raw;
    std::memcpy(&raw, bytes, sizeof raw);
    const LaneBits wide = __builtin_convertvector(raw, LaneBits), nan = LaneBits{} + 0x7FC00000;
    if (!NVFP4) {
        const LaneBits power = wide == 0 ? LaneBits{} + 0x400000 : wide << 23;
        return Float(wide == 255 ? nan : power);
    }
    const LaneBits size = wide & 0x7F;
    const LaneBits value = LaneBits(Float(size << 20) * 0x1p120f);
    return Float((size == 0x7F ? nan : value) | (wide & 0x80) << 24);
}

// How pairs of weights are held, and multiplied with a pair of activations: the second first, each
// product added with one rounding, which is what vdpbf16ps does. Rows get the same bits from both.
struct Wide {
    struct Weights {
        Float even, odd;
    };
    using Scale = Float;
    static Scale scale(const uint8_t* bytes) { return scales(bytes); }
    static Weights decode(const uint8_t* line, int pair, Scale scale) {
        return {e2m1(line, 4 * pair) * scale, e2m1(line, 4 * pair + 16) * scale};
    }
    static Float add(Float sum, const Weights& w, const uint32_t* x) {
        const Int pairs = broadcast(x);
        return fma(fma(sum, w.odd, odd(pairs)), w.even, even(pairs));
    }
    static bool runs() { return true; }
};

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
alignas(64) constexpr uint16_t BF16[32] = {
    0, 0x3F00, 0x3F80, 0x3FC0, 0x4000, 0x4040, 0x4080, 0x40C0, 0x8000, 0xBF00, 0xBF80, 0xBFC0, 0xC000, 0xC040, 0xC080, 0xC0C0,
    0, 0x3F00, 0x3F80, 0x3FC0, 0x4000, 0x4040, 0x4080, 0x40C0, 0x8000, 0xBF00, 0xBF80, 0xBFC0, 0xC000, 0xC040, 0xC080, 0xC0C0};

// takes subnormal numbers for zero, in and out
template <bool = NVFP4>
struct Pairwise {  // E2M1 times E4M3 has at most 6 bits: exact in bf16, the upper half of float
    using Weights = __m512i;
    using Scale = Float;
    static Scale scale(const uint8_t* bytes) { return scales(bytes); }
    static Weights decode(const uint8_t* line, int pair, Scale scale) {
        const Wide::Weights wide = Wide::decode(line, pair, scale);
        return _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(_mm512_castps_si512(wide.even), 16),
                                       _mm512_castps_si512(wide.odd));
    }
};

template <>
struct Pairwise<false> {  // a power of two is added to the exponents, but not to those of zeros
    using Weights = __m512i;
    using Scale = __m512i;
    static Scale scale(const uint8_t* bytes) {
        const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
        const __m512i exponent = _mm512_slli_epi32(_mm512_sub_epi32(wide, _mm512_set1_epi32(127)), 7);
        return _mm512_mask_blend_epi16(0xAAAAAAAA, exponent, _mm512_slli_epi32(exponent, 16));
    }
    // vpermw uses five bits of an index: the table stands there twice, and no masking is needed
    static Weights decode(const uint8_t* line, int pair, Scale scale) {
        const __m512i index = _mm512_srli_epi16(_mm512_loadu_si512(line), 4 * pair);
        const __m512i plain = _mm512_permutexvar_epi16(index, _mm512_load_si512(BF16));
        const __mmask32 nonzero = _mm512_test_epi16_mask(plain, _mm512_set1_epi16(0x7FFF));
        return _mm512_mask_add_epi16(plain, nonzero, plain, scale);
    }
};

struct Narrow : Pairwise<> {
    // as assembly, since not all CPUs of this level have it
    static Float add(Float sum, Weights w, const uint32_t* x) {
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(broadcast(x)));
        return sum;
    }
    static bool runs() { return __builtin_cpu_supports("avx512bf16"); }
};
#else
using Narrow = Wide;
#endif

}  // namespace simd
