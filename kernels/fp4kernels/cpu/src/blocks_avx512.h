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

// of so many blocks
template <class T>
constexpr int TOGETHER = 4;
inline void largest_of(const Float32* x, float* amax) {
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

template <>
constexpr int TOGETHER<Bfloat16> = 128 / BLOCK;
inline void largest_of(const Bfloat16* x, float* amax) {
    const auto held = [&](int line) { return _mm512_and_si512(_mm512_loadu_si512(x + 32 * line), _mm512_set1_epi16(0x7FFF)); };
    const auto pairs = [&](__m512i one, __m512i other) {
        return _mm512_max_epu16(_mm512_unpacklo_epi16(one, other), _mm512_unpackhi_epi16(one, other));
    };
    const __m512i low = pairs(held(0), held(1)), high = pairs(held(2), held(3));
    __m512i all = _mm512_max_epu16(_mm512_unpacklo_epi32(low, high), _mm512_unpackhi_epi32(low, high));
    all = _mm512_max_epu16(all, _mm512_shuffle_epi32(all, _MM_PERM_BADC));  // four lines in turns, in each 128 bits
    all = _mm512_max_epu16(all, _mm512_shuffle_i32x4(all, all, 0xB1));
    if (BLOCK == 32) all = _mm512_max_epu16(all, _mm512_shuffle_i32x4(all, all, 0x4E));
    alignas(64) static constexpr auto PLACES = [] {  // of block b, to the upper half of lane b
        struct { uint16_t of[32]; } places{};
        for (int b = 0; b < TOGETHER<Bfloat16>; ++b) places.of[2 * b + 1] = uint16_t(BLOCK == 32 ? b : b % 2 * 16 + b / 2);
        return places;
    }();
    const __m512i floats = _mm512_maskz_permutexvar_epi16(0xAAAAAAAA, _mm512_load_si512(PLACES.of), all);
    _mm512_mask_storeu_epi32(amax, (1 << TOGETHER<Bfloat16>) - 1, floats);
}

// of `count` blocks; the others of the group are 0
template <class T>
void largest(const T* x, int64_t count, float* amax) {
    int64_t b = 0;
    for (; b + TOGETHER<T> <= count; b += TOGETHER<T>) largest_of(x + b * BLOCK, amax + b);
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
// E2M1 codes of 32 values, one in each 16-bit lane, saturating at 6, the sign of zero kept. `magnitude`
// holds the upper halves of float32, settled: two bits of mantissa decide.
inline __m512i codes_of(__m512i magnitude, __m512i signs) {
    // by the five lowest bits of exponent and two of mantissa: codes from 1/4 on stand at 19
    alignas(64) static constexpr uint16_t CODES[32] = {4, 5, 5, 6, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
                                                       7, 7, 7, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4};
    const __m512i clamped = _mm512_min_epi16(
        _mm512_max_epi16(magnitude, _mm512_set1_epi16(0x3E7F)), _mm512_set1_epi16(0x40C0));
    const __m512i code = _mm512_permutexvar_epi16(_mm512_srli_epi16(clamped, 5), _mm512_load_si512(CODES));
    // code | sign << 3
    return _mm512_ternarylogic_epi32(code, _mm512_srli_epi16(signs, 12), _mm512_set1_epi16(8), 0xF8);
}

// Magnitudes whose ties, which are exact, lie in the interval of their code: where the code below a tie
// is even, which a clear first bit of mantissa says, one less. What 0 becomes, -1, is small, too.
inline __m512i settled(__m512i halves) {
    const __m512i down = _mm512_andnot_si512(_mm512_srli_epi16(halves, 6), _mm512_set1_epi16(1));
    return _mm512_sub_epi16(halves, down);
}
inline __m512i settled(__m512 magnitude) {
    const __m512i bits = _mm512_castps_si512(magnitude), down = _mm512_set1_epi32(-1);
    return _mm512_mask_add_epi32(bits, _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x400000)), bits, down);
}

// the upper halves of 32-bit lanes: of both vectors in turns, or of one after the other
template <bool TURNS>
inline __m512i upper_halves(__m512i first, __m512i second) {
    alignas(64) static constexpr auto PLACES = [] {
        struct { uint16_t of[32]; } places{};
        for (int i = 0; i < 32; ++i) places.of[i] = uint16_t(TURNS ? i / 2 * 2 + 1 + i % 2 * 32 : 2 * i + 1);
        return places;
    }();
    return _mm512_permutex2var_epi16(first, _mm512_load_si512(PLACES.of), second);
}

// of 32 values, of which the second 16 may have a multiplier of their own
inline __m512i codes_at(const Float32* x, float multiplier, float second) {
    const __m512 low = _mm512_mul_ps(load(x), _mm512_set1_ps(multiplier));
    const __m512 high = _mm512_mul_ps(load(x + 16), _mm512_set1_ps(second));
    const __m512i signs = upper_halves<false>(_mm512_castps_si512(low), _mm512_castps_si512(high));
    return codes_of(upper_halves<false>(settled(_mm512_abs_ps(low)), settled(_mm512_abs_ps(high))), signs);
}

inline __m512i codes_at(const Bfloat16* x, float multiplier, float second) {
    const __m512i values = _mm512_loadu_si512(x), held = _mm512_and_si512(values, _mm512_set1_epi16(0x7FFF));
    const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(held, 16));
    const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(held, _mm512_set1_epi32(int(0xFFFF0000))));
    const __m512 by = _mm512_mask_mov_ps(_mm512_set1_ps(multiplier), 0xFF00, _mm512_set1_ps(second));
    return codes_of(upper_halves<true>(settled(_mm512_mul_ps(even, by)), settled(_mm512_mul_ps(odd, by))), values);
}

// by subtraction of an exponent, where scales are powers of two that no subnormal number reaches
inline __m512i codes_at(const Bfloat16* x, int16_t exponent) {
    const __m512i values = _mm512_loadu_si512(x);
    const __m512i magnitude = _mm512_and_si512(values, _mm512_set1_epi16(0x7FFF));
    return codes_of(settled(_mm512_sub_epi16(magnitude, _mm512_set1_epi16(exponent))), values);
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
