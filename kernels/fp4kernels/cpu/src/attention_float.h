// Scores and weighted sums in float32, for every format and machine: keys and values are decoded
// row by row, and all query rows share the decoding.
#pragma once
#include "attention.h"
#include "numbers.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    return a * b + c;
#endif
}

// 16 tokens of one page and kv head; rows lie `*_step` bytes apart
struct Place {
    const uint8_t* codes;
    const uint8_t* scales;
    int64_t codes_step, scales_step;
};

template <int FORMAT>
inline void decode_row(const Place& from, int token, float* to) {
    constexpr Format F = FORMATS[FORMAT];
    const uint8_t* codes = from.codes + token * from.codes_step;
    if constexpr (F.bits == 16) {
        for (int d = 0; d < HEAD_DIM; ++d) {
            uint16_t held;
            std::memcpy(&held, codes + 2 * d, 2);
            to[d] = from_bf16(held);
        }
    } else if constexpr (F.bits == 8) {
        for (int d = 0; d < HEAD_DIM; ++d) to[d] = decode_e4m3(codes[d]);
    } else {
        for (int d = 0; d < HEAD_DIM; ++d) {  // twice 0, .5, 1, 1.5, 2, 3, 4, 6
            const int code = codes[d / 2] >> (d % 2 * 4), size = code & 7;
            const int twice = size + (size > 4 ? size - 4 : 0) + (size == 7 ? 2 : 0);
            to[d] = 0.5f * float(code & 8 ? -twice : twice);
        }
    }
    const uint8_t* scales = from.scales + token * from.scales_step;
    for (int b = 0; b < row_scales(F); ++b) {
        const float scale = F.e4m3_scales ? decode_e4m3(scales[b]) : decode_e8m0(scales[b]);
        for (int i = 0; i < F.block; ++i) to[b * F.block + i] *= scale;
    }
}

inline float sum_of(Lanes x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    float y[LANES];
    store_lanes(y, x);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) y[i] += y[i + width];
    return y[0];
#endif
}

// scores [ROWS][TILE] of `tokens` keys; queries are `stride` floats apart
inline void float_scores(const Place* places, int tokens, const float* queries, int64_t stride, float (*scores)[TILE], Ahead& ahead) {
    alignas(64) float key[STEP][HEAD_DIM];
    for (int first = 0; first < tokens; first += STEP) {
        const int count = tokens - first < STEP ? tokens - first : STEP;
        for (int t = 0; t < count; ++t) {
            ahead.some(row_lines(K));
            decode_row<KEYS>(places[first / STEP], t, key[t]);
        }
        for (int t = 0; t < count; ++t)
            for (int r = 0; r < ROWS; ++r) {
                Lanes sum = {};
                for (int d = 0; d < HEAD_DIM; d += LANES)
                    sum = multiply_add(load_lanes(queries + r * stride + d), load_lanes(key[t] + d), sum);
                scores[r][first + t] = sum_of(sum);
            }
    }
}

// out [rows][HEAD_DIM] = weights [rows][TILE] times `tokens` values
inline void float_sums(const Place* places, int tokens, const float (*weights)[TILE], int rows, float (*out)[HEAD_DIM], Ahead& ahead) {
    alignas(64) float value[TILE][HEAD_DIM];
    for (int t = 0; t < tokens; ++t) {
        ahead.some(row_lines(V));
        decode_row<VALUES>(places[t / STEP], t % STEP, value[t]);
    }
    constexpr int WIDE = HEAD_DIM / LANES;
    for (int r = 0; r < rows; ++r) {
        Lanes sums[WIDE] = {};
        for (int t = 0; t < tokens; ++t)
            for (int i = 0; i < WIDE; ++i)
                sums[i] = multiply_add(all_lanes(weights[r][t]), load_lanes(value[t] + i * LANES), sums[i]);
        for (int i = 0; i < WIDE; ++i) store_lanes(out[r] + i * LANES, sums[i]);
    }
}
