// micro() of micro.h in tiles of AMX: a block of K is one product of int8, exact as vpdpbusd's; its sums
// go through memory to the vectors that scale them, in the same order. Rows get the same bits from both.
#pragma once
#include "activations.h"
#include "tiles.h"

namespace tiles {

// registers: sums of two panels in turn, rows, and weights of four panels
constexpr int SUMS[] = {0, 1}, X = 2, WEIGHTS[] = {4, 5, 6, 7};

// the instructions name registers by literals
inline void load_weights(int panel, const void* from) {
    switch (panel) {
        case 0: _tile_loadd(4, from, ROW_BYTES); break;
        case 1: _tile_loadd(5, from, ROW_BYTES); break;
        case 2: _tile_loadd(6, from, ROW_BYTES); break;
        default: _tile_loadd(7, from, ROW_BYTES);
    }
}

inline void multiply_rows(int panel, void* to) {
    switch (panel) {
        case 0: _tile_zero(0); _tile_dpbssd(0, 2, 4); _tile_stored(0, to, ROW_BYTES); break;
        case 1: _tile_zero(1); _tile_dpbssd(1, 2, 5); _tile_stored(1, to, ROW_BYTES); break;
        case 2: _tile_zero(0); _tile_dpbssd(0, 2, 6); _tile_stored(0, to, ROW_BYTES); break;
        default: _tile_zero(1); _tile_dpbssd(1, 2, 7); _tile_stored(1, to, ROW_BYTES);
    }
}

}  // namespace tiles

template <bool, class Under = simd::Scales<simd::FAST>>
void micro(const uint8_t* w, int64_t w_stride, const uint8_t* ws, int64_t ws_stride, int64_t last,
           Tile x, int64_t blocks, const uint8_t* header, float* c) {
    using namespace simd;
    constexpr int LINES = BLOCK / 8;
    alignas(64) Int weights[PANELS][2 * LINES];
    alignas(64) Int sums[PANELS][tiles::ROWS];
    const int64_t height = tiles::height_for(x.rows);
    tiles::Shapes shapes;
    for (int tile : tiles::SUMS) shapes.set(tile, height, tiles::ROW_BYTES);
    for (int tile : tiles::WEIGHTS) shapes.set(tile, 2 * LINES, tiles::ROW_BYTES);
    shapes.set(tiles::X, height, BLOCK);
    const tiles::Configured configured(shapes);
    // tiles multiply signed bytes
    const Int bias = _mm512_set1_epi8(BIAS);
    for (int64_t b = 0; b < blocks; ++b) {
        typename Under::Column column[PANELS];
        UNROLL for (int p = 0; p < PANELS; ++p) {
            const int64_t panel = std::min<int64_t>(p, last);
            const uint8_t* line = w + panel * w_stride + b * LINES * 64;
            const uint8_t* bytes = ws + panel * ws_stride + b * 16;
            column[p] = typename Under::Column(bytes, header);
            UNROLL for (int l = 0; l < LINES; ++l) {
                if (PREFETCH) __builtin_prefetch(line + l * 64 + PREFETCH);
                weights[p][2 * l] = _mm512_sub_epi8(low(line + l * 64), bias);
                weights[p][2 * l + 1] = _mm512_sub_epi8(high(line + l * 64), bias);
            }
            if (PREFETCH) __builtin_prefetch(bytes + PREFETCH / (LINES * 64) * 16);
        }
        tiles::stored(weights);
        UNROLL for (int p = 0; p < PANELS; ++p) tiles::load_weights(p, weights[p]);
        for (int64_t r0 = 0; r0 < x.rows; r0 += height) {
            const int64_t cell = b * x.rows + r0, count = std::min(height, x.rows - r0);
            _tile_loadd(2, x.values + cell * (BLOCK / 4), BLOCK);
            UNROLL for (int p = 0; p < PANELS; ++p) tiles::multiply_rows(p, sums[p]);
            for (int64_t r = 0; r < count; ++r) {
                const typename Under::Row row(x.factor + cell + r);
                // without a bias, a sum starts at nothing, or at the bits of the factor
                const Int start = NVFP4 ? _mm512_setzero_si512() : broadcast(x.factor + cell + r);
                UNROLL for (int p = 0; p < PANELS; ++p) {
                    float* to = c + ((r0 + r) * PANELS + p) * LANES;
                    const Int sum = _mm512_add_epi32(Under::begin(start, column[p]), sums[p][r]);
                    store(to, Under::finish(load(to), sum, column[p], row));
                }
            }
        }
    }
}
