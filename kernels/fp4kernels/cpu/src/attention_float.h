// Scores and weighted sums in float32, for every format and machine: keys and values are decoded
// row by row, and all query rows share the decoding.
#pragma once
#include "attention.h"
#include "numbers.h"

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
        for (int d = 0; d < HEAD_DIM; ++d) to[d] = float(int8_t(codes[d])) * (1.0f / 64);
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

// Four vectors, each summed: as four parts of each sum, four sums after four.
inline Lanes sums_of(Lanes a, Lanes b, Lanes c, Lanes d) {
#if defined(__AVX512F__)
    const auto add = [](__m512 x, __m512 y) { return _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y))); };
    const __m512d ab = add((__m512)a, (__m512)b), cd = add((__m512)c, (__m512)d);
    return (Lanes)_mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
#else
    return Lanes{sum_of(a), sum_of(b), sum_of(c), sum_of(d)};
#endif
}

// what four such vectors come to: 16 sums
inline Lanes joined(const Lanes* four) {
#if defined(__AVX512F__)
    const auto halves = [](__m512 a, __m512 b) { return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD)); };
    return (Lanes)halves(halves((__m512)four[0], (__m512)four[1]), halves((__m512)four[2], (__m512)four[3]));
#else
    Lanes sums;
    for (int i = 0; i < LANES; ++i) sums[i] = four[i / 4][i % 4];
    return sums;
#endif
}

constexpr int WIDE = HEAD_DIM / LANES;

// scores [ROWS], TILE apart, of 16 keys, of which `tokens` are real; queries are `stride` floats apart
inline void float_scores(const Place& place, int tokens, const float* queries, int64_t stride, float* scores, const Place& next) {
    alignas(64) float key[STEP][HEAD_DIM];
    fetch_scales(next);
    for (int t = 0; t < tokens; ++t) {
        fetch_codes<row_bytes(K)>(next, t, 1);
        decode_row<KEYS>(place, t, key[t]);
    }
    if (tokens < STEP) std::memset(key[tokens], 0, (STEP - tokens) * sizeof key[0]);
    for (int r = 0; r < ROWS; ++r) {
        Lanes four[4];
        for (int t = 0; t < STEP; t += 4) {
            Lanes sums[4] = {};
#pragma GCC unroll 32
            for (int i = 0; i < WIDE; ++i) {
                const Lanes query = load_lanes(queries + r * stride + i * LANES);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) sums[j] = multiply_add(query, load_lanes(key[t + j] + i * LANES), sums[j]);
            }
            four[t / 4] = sums_of(sums[0], sums[1], sums[2], sums[3]);
        }
        store_lanes(scores + r * TILE, joined(four));
    }
}

// R rows of out [.][HEAD_DIM] += weights [.], TILE apart, times `tokens` values
template <int R>
inline void add_values(const float (*value)[HEAD_DIM], int tokens, const float* weights, float* out) {
    Lanes sums[R][WIDE];
#pragma GCC unroll 32
    for (int i = 0; i < R * WIDE; ++i) sums[i / WIDE][i % WIDE] = load_lanes(out + i * LANES);
    for (int t = 0; t < tokens; ++t)
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
            for (int i = 0; i < WIDE; ++i)
                sums[r][i] = multiply_add(all_lanes(weights[r * TILE + t]), load_lanes(value[t] + i * LANES), sums[r][i]);
#pragma GCC unroll 32
    for (int i = 0; i < R * WIDE; ++i) store_lanes(out + i * LANES, sums[i / WIDE][i % WIDE]);
}

// out [rows][HEAD_DIM] = weights [rows][TILE] times `tokens` values
inline void float_sums(const Place* places, int tokens, const float* weights, int64_t rows, float* out, const Place* next) {
    alignas(64) float value[STEP][HEAD_DIM];
    std::memset(out, 0, rows * HEAD_DIM * sizeof *out);
    for (int s = 0; s * STEP < tokens; ++s) {
        const int held = tokens - s * STEP < STEP ? tokens - s * STEP : STEP;
        fetch_scales(next[s]);
        for (int t = 0; t < held; ++t) {
            fetch_codes<row_bytes(V)>(next[s], t, 1);
            decode_row<VALUES>(places[s], t, value[t]);
        }
        int64_t r = 0;
        if (WIDE <= 8)  // the sums of two rows fit the registers
            for (; r + 1 < rows; r += 2) add_values<2>(value, held, weights + r * TILE + s * STEP, out + r * HEAD_DIM);
        for (; r < rows; ++r) add_values<1>(value, held, weights + r * TILE + s * STEP, out + r * HEAD_DIM);
    }
}
