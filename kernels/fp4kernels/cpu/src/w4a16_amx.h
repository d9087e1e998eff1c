// add_tile() of w4a16.cpp in tiles of AMX, for any number of rows.
//
// A chunk's products with the even k-values of pairs are summed, those with the odd ones too, and both
// sums are added to that of the chunks before: so tdpbf16ps is defined. vdpbf16ps has another order, and
// rows are to have the same bits in any batch: at this level all rows are summed as tiles sum them.
#pragma once
#include <type_traits>

#include "floats.h"
#include "pairs.h"
#include "tiles.h"

namespace {

using namespace tiles;

// registers: sums of four panels, rows, and weights of two panels in turn
constexpr int SUMS[] = {0, 1, 2, 3}, X = 4, HELD[] = {5, 6};

// the instructions name registers by literals
void zero_sums() { _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); }

void multiply_rows(int panel, const void* weights) {
    switch (panel) {
        case 0: _tile_loadd(5, weights, ROW_BYTES); _tile_dpbf16ps(0, 4, 5); break;
        case 1: _tile_loadd(6, weights, ROW_BYTES); _tile_dpbf16ps(1, 4, 6); break;
        case 2: _tile_loadd(5, weights, ROW_BYTES); _tile_dpbf16ps(2, 4, 5); break;
        default: _tile_loadd(6, weights, ROW_BYTES); _tile_dpbf16ps(3, 4, 6);
    }
}

void store_sums(int panel, float* to, int64_t stride) {
    switch (panel) {
        case 0: _tile_stored(0, to, stride); break;
        case 1: _tile_stored(1, to, stride); break;
        case 2: _tile_stored(2, to, stride); break;
        default: _tile_stored(3, to, stride);
    }
}

// a chunk, counted from the start of K, of the panel's weights; past K zeros
template <class Dot>
void decode(const Panels& of, int64_t panel, int64_t chunk, typename Dot::Weights* to) {
    for (int64_t k = chunk * CHUNK; k < (chunk + 1) * CHUNK; k += BLOCK, to += BLOCK / 2) {
        if (k >= of.k) {
            std::fill_n(to, BLOCK / 2, typename Dot::Weights{});
            continue;
        }
        const uint8_t *codes = of.codes(panel, k / BLOCK), *bytes = of.scales(panel, k / BLOCK);
        const auto scale = Dot::scale(bytes);
        UNROLL for (int p = 0; p < BLOCK / 2; ++p) to[p] = Dot::decode(codes + p / 4 * 64, p % 4, scale);
        if (PREFETCH) {
            UNROLL for (int l = 0; l < BLOCK / 8; ++l) __builtin_prefetch(codes + l * 64 + PREFETCH);
            __builtin_prefetch(bytes + PREFETCH / (BLOCK / 8 * 64) * 16);
        }
    }
}

// c [rows][WIDTH] = sums over chunks [begin, end), at most a segment. The first tile's turn decodes the
// weights, which wait in the cache for those of other rows.
void multiply_narrow(const Panels& of, const Pairs& x, int64_t tile, int64_t panel, int64_t begin, int64_t end, float* c) {
    alignas(64) thread_local simd::Narrow::Weights weights[SEGMENT / CHUNK][PANELS][PAIRS];
    const int64_t rows = x.rows(tile), height = height_for(rows);
    Shapes shapes;
    for (int sums : SUMS) shapes.set(sums, height, ROW_BYTES);
    for (int held : HELD) shapes.set(held, PAIRS, ROW_BYTES);
    shapes.set(X, height, CHUNK * 2);
    const Configured configured(shapes);
    for (int64_t r0 = 0; r0 < rows; r0 += height) {
        const uint32_t* values = x.tile(tile, begin) + r0 * PAIRS;
        zero_sums();
        for (int64_t chunk = begin; chunk < end; ++chunk, values += rows * PAIRS) {
            auto& held = weights[chunk - begin];
            if (r0 == 0) {
                UNROLL for (int p = 0; p < PANELS; ++p)
                    decode<simd::Narrow>(of, panel + std::min<int64_t>(p, of.last(panel)), chunk, held[p]);
                stored(held);
            }
            _tile_loadd(4, values, PAIRS * 4);
            UNROLL for (int p = 0; p < PANELS; ++p) multiply_rows(p, held[p]);
        }
        if (rows - r0 >= height) {
            UNROLL for (int p = 0; p < PANELS; ++p) store_sums(p, c + r0 * WIDTH + p * 16, WIDTH * 4);
        } else {
            alignas(64) float all[ROWS][WIDTH];
            UNROLL for (int p = 0; p < PANELS; ++p) store_sums(p, all[0] + p * 16, WIDTH * 4);
            std::copy_n(all[0], (rows - r0) * WIDTH, c + r0 * WIDTH);
        }
    }
}

// The same in vectors of float32, for values that tiles take for zero.
void multiply_wide(const Panels& of, const Pairs& x, int64_t tile, int64_t panel, int64_t begin, int64_t end, float* c) {
    using namespace simd;
    for (int64_t chunk = begin; chunk < end; ++chunk)
        for (int p = 0; p < PANELS; ++p) {
            Wide::Weights weights[PAIRS];
            decode<Wide>(of, panel + std::min<int64_t>(p, of.last(panel)), chunk, weights);
            for (int64_t r = 0; r < x.rows(tile); ++r) {
                const uint32_t* values = x.tile(tile, chunk) + r * PAIRS;
                Float evens = {}, odds = {};
                UNROLL for (int i = 0; i < PAIRS; ++i) {
                    const Int pairs = broadcast(values + i);
                    evens = fma(evens, weights[i].even, even(pairs));
                    odds = fma(odds, weights[i].odd, odd(pairs));
                }
                float* to = c + r * WIDTH + p * LANES;
                store(to, load(to) + (evens + odds));
            }
        }
}

// As that of w4a16.cpp, over a segment at most; c holds zeros.
template <class Dot, bool>
void add_tile(const Panels& of, const Pairs& x, int64_t tile, int64_t panel, int64_t begin, int64_t end, float* c) {
    constexpr auto by = std::is_same_v<Dot, simd::Narrow> ? multiply_narrow : multiply_wide;
    by(of, x, tile, panel, begin * BLOCK / CHUNK, ceil_div(end * BLOCK, CHUNK), c);
}

}  // namespace
