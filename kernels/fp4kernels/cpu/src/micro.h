// The inner kernel on vectors: rows of a tile by PANELS panels of 16 columns, over blocks of K.
//
// A block of weights is decoded into registers once and multiplied with all rows of the tile, RG at
// a time; the sums of rows wait in the first-level cache between blocks. Where all rows are in
// flight at once, sums stay in registers, and weights are decoded as they are needed.
#pragma once
#include "activations.h"

#if defined(__AMX_INT8__) && MR >= 16
#include "micro_amx.h"
#else

constexpr int LINES = BLOCK / 8;
constexpr int STRIPS = PANELS * 16 / simd::LANES;  // vectors side by side
constexpr int SPLIT = 16 / simd::LANES;            // of them, in a panel

// c [rows][PANELS * 16] += rows x panels over `blocks`. Panels lie `w_stride` bytes apart, their
// scales `ws_stride`; those after `last` repeat it. With ONE the tile has RG rows. `Under` is how sums
// begin and end under scales.
template <bool ONE, class Under = simd::Scales<simd::FAST>>
void micro(const uint8_t* w, int64_t w_stride, const uint8_t* ws, int64_t ws_stride, int64_t last,
           Tile x, int64_t blocks, const uint8_t* header, float* c) {
    using namespace simd;
    const int64_t rows = ONE ? RG : x.rows;
    Float held[ONE ? STRIPS : 1][RG];
    if (ONE)
        UNROLL for (int q = 0; q < STRIPS; ++q)
            UNROLL for (int r = 0; r < RG; ++r) held[q][r] = load(c + (r * STRIPS + q) * LANES);
    for (int64_t b = 0; b < blocks; ++b) {
        const uint8_t* line[STRIPS];
        typename Under::Column column[STRIPS];
        UNROLL for (int q = 0; q < STRIPS; ++q) {
            const int64_t panel = std::min<int64_t>(q / SPLIT, last);
            line[q] = w + panel * w_stride + b * LINES * 64 + q % SPLIT * LANES * 4;
            column[q] = typename Under::Column(ws + panel * ws_stride + b * 16 + q % SPLIT * LANES, header);
            if (PREFETCH && q % SPLIT == 0) {
                UNROLL for (int l = 0; l < LINES; ++l) __builtin_prefetch(line[q] + l * 64 + PREFETCH);
                __builtin_prefetch(ws + panel * ws_stride + b * 16 + PREFETCH / (LINES * 64) * 16);
            }
        }
        const auto decode = [&](int q, int l) { return l % 2 ? high(line[q] + l / 2 * 64) : low(line[q] + l / 2 * 64); };
        Int decoded[ONE ? 1 : STRIPS][2 * LINES];
        if (!ONE)
            UNROLL for (int q = 0; q < STRIPS; ++q)
                UNROLL for (int l = 0; l < 2 * LINES; ++l) decoded[q][l] = decode(q, l);
        for (int64_t r0 = 0; r0 < rows; r0 += RG) {
            const int64_t cell = b * rows + r0;
            const uint32_t* values = x.values + cell * (BLOCK / 4);
            Int sum[STRIPS][RG];
            UNROLL for (int r = 0; r < RG; ++r) {
                const Int start = broadcast(x.start + cell + r);
                UNROLL for (int q = 0; q < STRIPS; ++q) sum[q][r] = Under::begin(start, column[q]);
            }
            UNROLL for (int l = 0; l < 2 * LINES; ++l) {
                Int weights[STRIPS];
                UNROLL for (int q = 0; q < STRIPS; ++q) weights[q] = ONE ? decode(q, l) : decoded[q][l];
                UNROLL for (int r = 0; r < RG; ++r) {
                    const Int four = broadcast(values + r * (BLOCK / 4) + l);
                    UNROLL for (int q = 0; q < STRIPS; ++q) sum[q][r] = dot(sum[q][r], weights[q], four);
                }
            }
            UNROLL for (int r = 0; r < RG; ++r) {
                const typename Under::Row row(x.factor + cell + r);
                UNROLL for (int q = 0; q < STRIPS; ++q) {
                    float* to = c + ((r0 + r) * STRIPS + q) * LANES;
                    if (ONE) held[q][r] = Under::finish(held[q][r], sum[q][r], column[q], row);
                    else store(to, Under::finish(load(to), sum[q][r], column[q], row));
                }
            }
        }
    }
    if (ONE)
        UNROLL for (int q = 0; q < STRIPS; ++q)
            UNROLL for (int r = 0; r < RG; ++r) store(c + (r * STRIPS + q) * LANES, held[q][r]);
}

#endif
