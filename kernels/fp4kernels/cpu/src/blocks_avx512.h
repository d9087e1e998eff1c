// Blocks of values by AVX-512: their largest magnitudes, and their codes.
#pragma once
#include <immintrin.h>

namespace {

inline __m512 load(const Float32* x) { return _mm512_loadu_ps(&x->value); }
inline __m512 load(const Bfloat16* x) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// the bits of |x| order as integers do, NaN above all
template <class T>
inline __m512i magnitudes(const T* block) {
    const __m512i mask = _mm512_set1_epi32(0x7FFFFFFF);
    const __m512i first = _mm512_and_si512(_mm512_castps_si512(load(block)), mask);
    if (BLOCK == 16) return first;
    return _mm512_max_epi32(first, _mm512_and_si512(_mm512_castps_si512(load(block + 16)), mask));
}

// of 32 values by twos, each in the upper half of its lane
inline __m512i magnitudes_by_twos(const Bfloat16* x) {
    const __m512i all = _mm512_and_si512(_mm512_loadu_si512(x), _mm512_set1_epi16(0x7FFF));
    return _mm512_and_si512(_mm512_max_epu16(all, _mm512_slli_epi32(all, 16)), _mm512_set1_epi32(int(0xFFFF0000)));
}

#if !NVFP4
template <>
inline __m512i magnitudes(const Bfloat16* block) { return magnitudes_by_twos(block); }
#endif

// of four blocks
template <class T>
inline void largest_of_four(const T* x, float* amax) {
    const auto pairs = [](__m512i one, __m512i other) {
        return _mm512_max_epi32(_mm512_unpacklo_epi32(one, other), _mm512_unpackhi_epi32(one, other));
    };
    const __m512i low = pairs(magnitudes(x), magnitudes(x + BLOCK));
    const __m512i high = pairs(magnitudes(x + 2 * BLOCK), magnitudes(x + 3 * BLOCK));
    __m512i all = _mm512_max_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
    all = _mm512_max_epi32(all, _mm512_shuffle_i32x4(all, all, 0x4E));
    all = _mm512_max_epi32(all, _mm512_shuffle_i32x4(all, all, 0xB1));
    _mm_storeu_ps(amax, _mm_castsi128_ps(_mm512_castsi512_si128(all)));
}

#if NVFP4
template <>
inline void largest_of_four(const Bfloat16* x, float* amax) {
    const __m512i front = magnitudes_by_twos(x), back = magnitudes_by_twos(x + 32);  // two blocks each
    __m512i all = _mm512_max_epi32(_mm512_unpacklo_epi32(front, back), _mm512_unpackhi_epi32(front, back));
    all = _mm512_max_epi32(all, _mm512_shuffle_epi32(all, _MM_PERM_BADC));
    all = _mm512_max_epi32(all, _mm512_shuffle_i32x4(all, all, 0xB1));
    const __m128i first = _mm512_castsi512_si128(all), second = _mm512_extracti32x4_epi32(all, 2);
    _mm_storeu_ps(amax, _mm_castsi128_ps(_mm_unpacklo_epi32(first, second)));
}
#endif

// of `count` blocks; the others of the group are 0
template <class T>
void largest(const T* x, int64_t count, float* amax) {
    int64_t b = 0;
    for (; b + 4 <= count; b += 4) largest_of_four(x + b * BLOCK, amax + b);
    for (; b < count; ++b) amax[b] = from_bits(_mm512_reduce_max_epi32(magnitudes(x + b * BLOCK)));
    std::fill(amax + b, amax + GROUP, 0.0f);
}

#if BITS == 8
// int8 in 64ths: to nearest even, saturating at 127, which is NaN's code too
inline __m128i int8_of(__m512 x) {
    const __m512 most = _mm512_set1_ps(127.0f), scaled = _mm512_mul_ps(x, _mm512_set1_ps(64.0f));
    const __m512 held = _mm512_max_ps(_mm512_min_ps(scaled, most), _mm512_set1_ps(-127.0f));  // of NaN the second
    return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(held));
}

template <class T>
void encode(const T* x, int64_t count, const float* multiplier, uint8_t* codes, bool) {
    for (int64_t i = 0; i < count * BLOCK; i += 16) {
        const __m512 scaled = _mm512_mul_ps(load(x + i), _mm512_set1_ps(multiplier[i / BLOCK]));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), int8_of(scaled));
    }
}
#else
// E2M1 codes of 32 values, one in each 16-bit lane: to nearest even, saturating at 6, the sign of zero
// kept. `magnitude` holds the upper halves of float32, the last bit set where bits were cut off: what
// is a tie stays one, and nothing else becomes one. Of the others two bits of mantissa decide.
inline __m512i codes_of(__m512i magnitude, __m512i signs) {
    // by the five lowest bits of exponent and two of mantissa: codes from 1/4 on stand at 19
    alignas(64) static constexpr uint16_t CODES[32] = {4, 5, 5, 6, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
                                                       7, 7, 7, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4};
    const __m512i clamped = _mm512_min_epi16(
        _mm512_max_epi16(magnitude, _mm512_set1_epi16(0x3E80)), _mm512_set1_epi16(0x40C0));
    // a tie goes down, to the interval before, where the code below it is even
    const __m512i down = _mm512_andnot_si512(_mm512_srli_epi16(clamped, 6), _mm512_set1_epi16(1));
    const __m512i interval = _mm512_srli_epi16(_mm512_sub_epi16(clamped, down), 5);
    const __m512i code = _mm512_permutexvar_epi16(interval, _mm512_load_si512(CODES));
    // code | sign << 3
    return _mm512_ternarylogic_epi32(code, _mm512_srli_epi16(signs, 12), _mm512_set1_epi16(8), 0xF8);
}

// of 32 values, of which the second 16 may have a multiplier of their own
template <class T>
inline __m512i codes_at(const T* x, float multiplier, float second) {
    const __m512i low = _mm512_castps_si512(_mm512_mul_ps(load(x), _mm512_set1_ps(multiplier)));
    const __m512i high = _mm512_castps_si512(_mm512_mul_ps(load(x + 16), _mm512_set1_ps(second)));
    alignas(64) static constexpr auto PLACES = [] {
        struct { uint16_t upper[32], lower[32]; } places{};
        for (int i = 0; i < 32; ++i) places.upper[i] = 2 * i + 1, places.lower[i] = 2 * i;
        return places;
    }();
    const __m512i upper = _mm512_permutex2var_epi16(low, _mm512_load_si512(PLACES.upper), high);
    const __m512i lower = _mm512_permutex2var_epi16(low, _mm512_load_si512(PLACES.lower), high);
    const __m512i one = _mm512_set1_epi16(1);
    const __m512i magnitude = _mm512_and_si512(upper, _mm512_set1_epi16(0x7FFF));
    return codes_of(_mm512_or_si512(magnitude, _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(lower, lower), one)), upper);
}

// by subtraction of an exponent, where scales are powers of two that no subnormal number reaches
inline __m512i codes_at(const Bfloat16* x, int16_t exponent) {
    const __m512i values = _mm512_loadu_si512(x);
    const __m512i magnitude = _mm512_and_si512(values, _mm512_set1_epi16(0x7FFF));
    return codes_of(_mm512_sub_epi16(magnitude, _mm512_set1_epi16(exponent)), values);
}

// two vectors of codes to 32 bytes
inline __m256i packed(__m512i first, __m512i second) {
    alignas(64) static constexpr auto ORDER = [] {  // byte v of 32-bit lane i to byte 16 v + i
        struct { uint8_t of[64]; } order{};
        for (int i = 0; i < 32; ++i) order.of[i] = uint8_t(i % 16 * 4 + i / 16);
        return order;
    }();
    const __m512i codes = _mm512_or_si512(first, _mm512_slli_epi16(second, 8));
    const __m512i bytes = _mm512_or_si512(codes, _mm512_srli_epi32(codes, 12));  // odd codes above even ones
    return _mm512_castsi512_si256(_mm512_permutexvar_epi8(_mm512_load_si512(ORDER.of), bytes));
}

// past the caches, which `codes` then lie aligned for
inline void put(uint8_t* codes, __m256i bytes, bool past) {
    if (past) _mm256_stream_si256(reinterpret_cast<__m256i*>(codes), bytes);
    else _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), bytes);
}

template <class T, class Codes>
inline void encode_by(const T* x, int64_t count, uint8_t* codes, bool past, Codes&& at) {
    past &= reinterpret_cast<uintptr_t>(codes) % 32 == 0;
    constexpr int AT_ONCE = 64 / BLOCK;
    int64_t b = 0;
    for (; b + AT_ONCE <= count; b += AT_ONCE) {
        const T* from = x + b * BLOCK;
        for (size_t line = 0; line < 64 * sizeof(T); line += 64)  // memory works on the next group meanwhile
            __builtin_prefetch(reinterpret_cast<const char*>(from + GROUP * BLOCK) + line);
        put(codes + b * (BLOCK / 2), packed(at(from, b), at(from + 32, b + AT_ONCE / 2)), past);
    }
    if (b < count) {  // a copy: nothing beyond the last block may be read
        T rest[64] = {};
        std::copy_n(x + b * BLOCK, (count - b) * BLOCK, rest);
        const __m256i bytes = packed(at(rest, b), at(rest + 32, b + AT_ONCE / 2));
        _mm256_mask_storeu_epi8(codes + b * (BLOCK / 2), (1u << (count - b) * (BLOCK / 2)) - 1, bytes);
    }
    if (past) _mm_sfence();
}

// `multiplier` of the whole group may be read
template <class T>
void encode(const T* x, int64_t count, const float* multiplier, uint8_t* codes, bool past) {
    encode_by(x, count, codes, past, [&](const T* from, int64_t b) {
        return codes_at(from, multiplier[b], multiplier[b + (BLOCK == 16)]);
    });
}

#if !NVFP4
template <>
void encode(const Bfloat16* x, int64_t count, const float* multiplier, uint8_t* codes, bool past) {
    constexpr uint32_t LEAST = 3;  // a subnormal number under such a scale is at most 1/4: it becomes 0
    alignas(64) int16_t exponent[GROUP];
    uint32_t simple = 1;
    for (int64_t b = 0; b < count; ++b) {
        const uint32_t bits = to_bits(multiplier[b]), byte = 254 - (bits >> 23);  // of 2^(127 - byte)
        simple &= uint32_t((bits & 0x7FFFFF) == 0) & uint32_t(byte >= LEAST);
        exponent[b] = int16_t((int32_t(byte) - 127) * 128);
    }
    if (simple)
        encode_by(x, count, codes, past, [&](const Bfloat16* from, int64_t b) { return codes_at(from, exponent[b]); });
    else
        encode_by(x, count, codes, past, [&](const Bfloat16* from, int64_t b) { return codes_at(from, multiplier[b], multiplier[b]); });
}
#endif
#endif

}  // namespace
