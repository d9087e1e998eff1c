// Scores and weighted sums over E2M1 keys and values in exact integers, on AVX-512 VNNI.
//
// Twice an E2M1 value is an integer, so queries and weights become integers of Q_BYTES and P_BYTES
// bytes, which vpdpbusd multiplies byte by byte; the sums over a scale block are exact. A query is
// rounded to a power of two below its largest value / 2^22, a weight to 2^-24 of the largest (with
// three bytes): as float32 would, once.
//
//   keys    [step][8 values][even, odd]  dword lane = token, its 4 bytes 4 of the values
//   values  [chunk][4 tokens][8]         dword lane = value, its 4 bytes the tokens; place_of()
//
// A chunk is 128 values of a row, one line of 64 bytes; shorter rows leave lanes unused.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <type_traits>

#include "attention_float.h"

constexpr int CHUNKS = (HEAD_DIM + 127) / 128;
constexpr int LINE = std::min(HEAD_DIM / 2, 64);  // bytes of a row in one chunk
constexpr int BIAS = 12;                          // keys decode to unsigned bytes

// block scales of one chunk of a row
constexpr int chunk_scales(Format f) { return std::min(row_scales(f), 128 / f.block); }

struct alignas(64) Bytes64 {
    uint8_t at[64];
};

// `vpermb` uses six bits of an index: four copies of a table of 16 need no masking
constexpr Bytes64 code_table(int bias) {
    constexpr int twice[8] = {0, 1, 2, 3, 4, 6, 8, 12};
    Bytes64 table{};
    for (int i = 0; i < 64; ++i) table.at[i] = uint8_t(bias + (i & 8 ? -twice[i & 7] : twice[i & 7]));
    return table;
}
inline constexpr Bytes64 KEY_TABLE = code_table(BIAS), VALUE_TABLE = code_table(0);

// f(0) to f(COUNT - 1), each a constant: gcc 12 keeps arrays of sums in registers then, while those of
// unrolled loops may go through memory.
template <int COUNT, class F>
INLINE inline void each(const F& f) {
    if constexpr (COUNT > 0) {
        each<COUNT - 1>(f);
        f(std::integral_constant<int, COUNT - 1>());
    }
}

inline __m512i load_bytes(const void* from) { return _mm512_loadu_si512(from); }

// The scale bytes of 16 tokens in one chunk of a row: [token][8], zeros for tokens past the end.
template <int FORMAT>
struct ScaleRows {
    static constexpr Format F = FORMATS[FORMAT];
    __m512i low, high;

    ScaleRows(const Place& from, int chunk, int tokens) {
        constexpr int PER = chunk_scales(F);
        __m512i held[2] = {};
#pragma GCC unroll 16
        for (int t = 0; t < STEP; ++t) {
            uint64_t row = 0;
            std::memcpy(&row, from.scales + t * from.scales_step + chunk * PER, PER);
            held[t / 8] = _mm512_mask_broadcastq_epi64(held[t / 8], __mmask8(1 << t % 8), _mm_cvtsi64_si128(int64_t(row)));
        }
        low = held[0], high = held[1];
        if (tokens < STEP) {
            const unsigned mask = (1u << tokens) - 1;
            low = _mm512_maskz_mov_epi64(__mmask8(mask), low), high = _mm512_maskz_mov_epi64(__mmask8(mask >> 8), high);
        }
    }

    // false where a byte is NaN or negative, or so large that products leave the range of float
    bool plain() const {
        const __m512i limit = _mm512_set1_epi8(int8_t(F.e4m3_scales ? 0x7E : 127 + 64));
        return !_mm512_cmpgt_epu8_mask(_mm512_max_epu8(low, high), limit);
    }

    __m512i ordered(const Bytes64& order) const { return _mm512_permutex2var_epi8(low, load_bytes(&order), high); }
};

// What the floats below must be multiplied by: E4M3 is read as half precision.
constexpr float unit(Format f) { return f.e4m3_scales ? 256.0f : 1.0f; }

// 16 scale bytes to float, over unit()
template <int FORMAT>
inline __m512 decode_scales(__m128i bytes) {
    if (FORMATS[FORMAT].e4m3_scales)
        return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 7));
    const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 23);
    return _mm512_castsi512_ps(_mm512_max_epu32(bits, _mm512_set1_epi32(0x00400000)));
}

inline __m128i load_16(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }

// Dwords 4 * piece to 4 * piece + 3 of 16 rows, to a vector each.
inline void columns(const Place& from, int piece, __m512i (&to)[4]) {
    __m512i x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const uint8_t* at = from.codes + i * from.codes_step + piece * 16;
        x[i] = _mm512_castsi128_si512(load_16(at));
#pragma GCC unroll 4
        for (int lane = 1; lane < 4; ++lane)
            x[i] = _mm512_mask_broadcast_i32x4(x[i], __mmask16(0xF << 4 * lane), load_16(at + 4 * lane * from.codes_step));
    }
    const __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
    const __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
    to[0] = _mm512_unpacklo_epi64(a, c), to[1] = _mm512_unpackhi_epi64(a, c);
    to[2] = _mm512_unpacklo_epi64(b, d), to[3] = _mm512_unpackhi_epi64(b, d);
}

// 64 bytes of one chunk of a row, zeros past its end
inline __m512i load_line(const Place& from, int token, int chunk) {
    constexpr __mmask16 WHOLE = __mmask16((1u << (LINE / 4)) - 1);
    return _mm512_maskz_loadu_epi32(WHOLE, from.codes + token * from.codes_step + chunk * 64);
}

// Four products of an unsigned and a signed byte to each sum. In place: gcc 12 copies the sums around
// the intrinsic, and spills them.
inline void dot(__m512i& sum, __m512i bytes, __m512i signed_bytes) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(signed_bytes));
}
