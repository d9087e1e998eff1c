// The loops around an inner kernel: cache blocks of rows and K, groups of panels, tasks, and outputs.
//
// Compiled with -D of MR, RG, PANELS and PREFETCH: see gemm.cpp.
#pragma once
#include <algorithm>
#include <vector>

#include "abi.h"
#include "numbers.h"

#define UNROLL _Pragma("GCC unroll 16")

constexpr int BLOCK = NVFP4 ? 16 : 32;
constexpr int WIDTH = PANELS * 16;

// rows after the last that may be read, and are thrown away
#if defined(__AMX_INT8__)
constexpr int64_t SPARE_ROWS = (MR - 1) / 16;  // see height_for() of tiles.h
#else
constexpr int64_t SPARE_ROWS = 0;
#endif

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline float decode_scale(uint8_t byte) { return NVFP4 ? decode_e4m3(byte) : decode_e8m0(byte); }

// rows of all but the last tile: shared out evenly, at most MR, a multiple of RG
inline int64_t tile_height(int64_t m) { return ceil_div(ceil_div(m, ceil_div(m, MR)), RG) * RG; }

// A weight in panel16, and where its parts lie.
struct Panels {
    const Operand& w;
    int64_t n, k;
    int64_t count() const { return (n + 15) / 16; }
    int64_t blocks() const { return k / BLOCK; }
    int64_t bytes() const { return k / 8 * 64; }
    int64_t scale_bytes() const { return blocks() * 16; }
    const uint8_t* header() const { return w.scales; }
    const uint8_t* codes(int64_t panel, int64_t block) const { return w.codes + panel * bytes() + block * (BLOCK / 8) * 64; }
    const uint8_t* scales(int64_t panel, int64_t block) const { return header() + 64 + panel * scale_bytes() + block * 16; }
    // past the last panel the inner kernel repeats it: computed and thrown away
    int64_t last(int64_t panel) const { return std::min<int64_t>(PANELS, count() - panel) - 1; }
};

// `scale` is a power of two, of which `alpha` knows nothing: no row sees the scheme of another's batch
inline void store_row(const GemmArgs& args, float scale, int64_t at, int64_t columns, const float* c) {
    const float alpha = (args.x.tensor_scale ? *args.x.tensor_scale : 1.0f) * *args.w.tensor_scale;
    if (args.out_is_bf16) {
        uint16_t* out = static_cast<uint16_t*>(args.out) + at;
        for (int64_t i = 0; i < columns; ++i) out[i] = to_bf16(alpha * (scale * c[i]));
    } else {
        float* out = static_cast<float*>(args.out) + at;
        for (int64_t i = 0; i < columns; ++i) out[i] = alpha * (scale * c[i]);
    }
}

// rows [row, row_end) of the group of `panel`
inline void store_rows(const GemmArgs& args, float scale, int64_t row, int64_t row_end, int64_t panel, const float* c) {
    const int64_t columns = args.n - panel * 16;
    for (int64_t r = row; r < row_end; ++r, c += WIDTH) {
        const int64_t at = r * args.n + panel * 16;
        if (columns >= WIDTH) store_row(args, scale, at, WIDTH, c);  // inlined for this width
        else store_row(args, scale, at, columns, c);
    }
}

struct alignas(64) Sums {  // of a row
    float of[WIDTH];
};

// out = x times w transposed, `scale` times the sums that add_tile(tile, panel, begin, end, c) adds
// to c [tile_height][WIDTH], for the panels from `panel` on and blocks [begin, end) of K.
template <class AddTile>
void multiply(const GemmArgs& args, ParallelFor run, int64_t threads, float scale, const AddTile& add_tile) {
    constexpr int64_t TASKS = 64;  // a thread, so that all end at about the same time
    const Panels w{args.w, args.n, args.k};
    const int64_t height = tile_height(args.m), tiles = ceil_div(args.m, height);
    const int64_t together = std::max<int64_t>(1, args.mc / MR);  // tiles of a cache block
    const int64_t groups = ceil_div(w.count(), PANELS), row_blocks = ceil_div(tiles, together);
    const int64_t chunks = std::min(groups, std::max(threads, TASKS * threads / row_blocks));
    const int64_t step = args.kc ? args.kc / BLOCK : w.blocks();
    parallel(run, row_blocks * chunks, [&](int64_t task) {
        thread_local std::vector<Sums> sums;  // of the block
        sums.resize(together * MR);
        float* c = sums.data()->of;
        const int64_t tile = task / chunks * together, tile_end = std::min(tiles, tile + together);
        const int64_t chunk = task % chunks;
        for (int64_t g = groups * chunk / chunks; g < groups * (chunk + 1) / chunks; ++g) {
            std::fill_n(c, (tile_end - tile) * height * WIDTH, 0.0f);
            for (int64_t begin = 0; begin < w.blocks(); begin += step)
                for (int64_t t = tile; t < tile_end; ++t)
                    add_tile(t, g * PANELS, begin, std::min(begin + step, w.blocks()), c + (t - tile) * height * WIDTH);
            store_rows(args, scale, tile * height, std::min(args.m, tile_end * height), g * PANELS, c);
        }
    });
}
