// The inner kernel on AVX-512 VNNI: R rows by P panels of 16 columns, accumulated over blocks of K.
//
// A line of 64 bytes holds 8 k-values of 16 columns. `vpermb` looks up 64 bytes at once in a table
// of 64 entries; it uses six bits of an index, so the 16 values stand there four times and no
// masking is needed: the low nibbles come from the line as it is, the high ones after a shift.
#pragma once
#include <immintrin.h>

#include "activations.h"

constexpr int LINES = BLOCK / 8;

alignas(64) constexpr uint8_t WEIGHT_TABLE[64] = {
    12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,
    12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,
    12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,
    12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

inline __m512i broadcast(const void* x) { return _mm512_set1_epi32(*static_cast<const int32_t*>(x)); }

// Four k-values of one row, multiplied into all panels. With one panel the broadcast is part of the
// instruction, which gcc 12 does not see by itself; more panels share one load, since two loads a
// cycle are all there are.
template <int G>
inline void dot(__m512i (&sum)[PANELS][G], const __m512i (&w)[PANELS][2 * LINES], int l, int r, const uint32_t* x) {
    if (PANELS == 1) {
        asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum[0][r]) : "v"(w[0][l]), "m"(*x));
    } else {
        const __m512i four = broadcast(x);
#pragma GCC unroll 16
        for (int p = 0; p < PANELS; ++p) sum[p][r] = _mm512_dpbusd_epi32(sum[p][r], w[p][l], four);
    }
}

// the 16 column scales of one block, ready for finish(); `low` and `high` bound the bytes
inline __m512i column_scales(const uint8_t* bytes, __m128i low, __m128i high) {
    __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
    if (FAST == Scheme::MAGIC) {  // only blocks of zeros lie outside the bounds
        raw = _mm_min_epu8(_mm_max_epu8(raw, low), high);
        return _mm512_slli_epi32(_mm512_cvtepu8_epi32(raw), 23);
    }
    // E4M3 as half precision, 2^8 too small: the epilogue makes up for it
    const __m256i sign = _mm256_cvtepi8_epi16(raw);
    const __m256i half = _mm256_or_si256(
        _mm256_slli_epi16(_mm256_and_si256(sign, _mm256_set1_epi16(0x7F)), 7),
        _mm256_and_si256(sign, _mm256_set1_epi16(int16_t(0x8000))));
    return _mm512_castps_si512(_mm512_cvtph_ps(half));
}

// 2^8 for the half-precision scales above, 1/4 for operands that are twice their values
constexpr float FAST_EPILOGUE = FAST == Scheme::MULTIPLY ? 64.0f : 1.0f;

inline __m512 finish(__m512 acc, __m512i sum, __m512i column, const uint32_t* factor) {
    if (FAST == Scheme::MAGIC) {
        const __m512 magic = _mm512_castsi512_ps(_mm512_add_epi32(column, broadcast(factor)));
        return _mm512_add_ps(acc, _mm512_sub_ps(_mm512_castsi512_ps(sum), magic));
    }
    const __m512 scale = _mm512_mul_ps(_mm512_castsi512_ps(column), _mm512_castsi512_ps(broadcast(factor)));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, acc);
}

// c [R][PANELS * 16] += rows x panels over `blocks`. Panels lie `w_stride` bytes apart, their scales
// `ws_stride`; those after `last` repeat it. R rows of a tile that holds MR.
template <int R>
void micro(const uint8_t* w, int64_t w_stride, const uint8_t* ws, int64_t ws_stride,
           int64_t last, const uint32_t* x, const int32_t* start, const uint32_t* factor, int64_t blocks,
           const uint8_t* header, float* c) {
    const __m512i table = _mm512_load_si512(WEIGHT_TABLE);
    const __m128i low = _mm_set1_epi8(int8_t(header[0])), high = _mm_set1_epi8(int8_t(header[1]));
    __m512 acc[PANELS][R];
#pragma GCC unroll 16
    for (int p = 0; p < PANELS; ++p)
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) acc[p][r] = _mm512_loadu_ps(c + (r * PANELS + p) * 16);
    constexpr int G = R % RG ? R : RG;
    for (int64_t b = 0; b < blocks; ++b) {
        __m512i weights[PANELS][2 * LINES], column[PANELS];
#pragma GCC unroll 16
        for (int p = 0; p < PANELS; ++p) {
            const int64_t panel = std::min<int64_t>(p, last);
            const uint8_t* line = w + panel * w_stride + b * LINES * 64;
#pragma GCC unroll 16
            for (int l = 0; l < LINES; ++l) {
                if (PREFETCH) _mm_prefetch(reinterpret_cast<const char*>(line + l * 64 + PREFETCH), _MM_HINT_T0);
                const __m512i codes = _mm512_loadu_si512(line + l * 64);
                weights[p][2 * l] = _mm512_permutexvar_epi8(codes, table);
                weights[p][2 * l + 1] = _mm512_permutexvar_epi8(_mm512_srli_epi16(codes, 4), table);
            }
            column[p] = column_scales(ws + panel * ws_stride + b * 16, low, high);
        }
        const uint32_t* rows = x + b * 2 * LINES * MR;
#pragma GCC unroll 16
        for (int r0 = 0; r0 < R; r0 += G) {
            __m512i sum[PANELS][G];
#pragma GCC unroll 16
            for (int r = 0; r < G; ++r) {
                const __m512i first = broadcast(start + b * MR + r0 + r);
#pragma GCC unroll 16
                for (int p = 0; p < PANELS; ++p)
                    sum[p][r] = FAST == Scheme::MAGIC ? _mm512_add_epi32(first, column[p]) : first;
            }
#pragma GCC unroll 16
            for (int l = 0; l < 2 * LINES; ++l)
#pragma GCC unroll 16
                for (int r = 0; r < G; ++r) dot(sum, weights, l, r, rows + (r0 + r) * 2 * LINES + l);
#pragma GCC unroll 16
            for (int r = 0; r < G; ++r)
#pragma GCC unroll 16
                for (int p = 0; p < PANELS; ++p)
                    acc[p][r0 + r] = finish(acc[p][r0 + r], sum[p][r], column[p], factor + b * MR + r0 + r);
        }
    }
#pragma GCC unroll 16
    for (int p = 0; p < PANELS; ++p)
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) _mm512_storeu_ps(c + (r * PANELS + p) * 16, acc[p][r]);
}
