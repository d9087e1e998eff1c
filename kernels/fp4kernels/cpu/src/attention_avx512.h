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

inline __m512i load_bytes(const void* from) { return _mm512_loadu_si512(from); }

// 64 bytes of one chunk of a row, zeros past its end
inline __m512i load_line(const Place& from, int token, int chunk) {
    constexpr __mmask16 WHOLE = __mmask16((1u << (LINE / 4)) - 1);
    return _mm512_maskz_loadu_epi32(WHOLE, from.codes + token * from.codes_step + chunk * 64);
}

// The scale bytes of a tile, gathered: [chunk][token][chunk_scales], zeros for tokens past the end.
template <int FORMAT>
struct ScaleBytes {
    static constexpr Format F = FORMATS[FORMAT];
    static constexpr int PER = chunk_scales(F);
    alignas(64) uint8_t at[CHUNKS][TILE * PER + 128];

    // false where a byte is NaN or negative, or so large that products leave the range of float
    bool gather(const Place* places, int tokens, int steps) {
        __m128i most = _mm_setzero_si128();
        for (int c = 0; c < CHUNKS; ++c)
            for (int s = 0; s < steps; ++s) {
                uint8_t* to = at[c] + s * STEP * PER;
                const uint8_t* from = places[s].scales + c * PER;
#pragma GCC unroll 16
                for (int t = 0; t < STEP; ++t) std::memcpy(to + t * PER, from + t * places[s].scales_step, PER);
                const int held = tokens - s * STEP;
                if (held < STEP) std::memset(to + held * PER, 0, (STEP - held) * PER);
            }
        for (int c = 0; c < CHUNKS; ++c)
            for (int i = 0; i < steps * PER; ++i)
                most = _mm_max_epu8(most, _mm_load_si128(reinterpret_cast<const __m128i*>(at[c]) + i));
        const __m128i limit = _mm_set1_epi8(int8_t(F.e4m3_scales ? 0x7E : 127 + 64));
        return _mm_testc_si128(_mm_cmpeq_epi8(_mm_max_epu8(most, limit), limit), _mm_set1_epi8(-1));
    }
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

// 16 rows of 16 dwords to 16 columns of 16
inline void transpose(__m512i (&x)[16]) {
    __m512i y[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
        const __m512i a = _mm512_shuffle_i32x4(x[k], x[4 + k], 0x88), b = _mm512_shuffle_i32x4(x[8 + k], x[12 + k], 0x88);
        const __m512i c = _mm512_shuffle_i32x4(x[k], x[4 + k], 0xDD), d = _mm512_shuffle_i32x4(x[8 + k], x[12 + k], 0xDD);
        y[k] = _mm512_shuffle_i32x4(a, b, 0x88), y[8 + k] = _mm512_shuffle_i32x4(a, b, 0xDD);
        y[4 + k] = _mm512_shuffle_i32x4(c, d, 0x88), y[12 + k] = _mm512_shuffle_i32x4(c, d, 0xDD);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) x[i] = y[i];
}
