// W4A4 GEMM in exact integers. Compiled once per configuration, with -D of
//   NVFP4     0 or 1: the format
//   MR, RG    rows of a tile, for which weights are decoded once; rows in flight of them
//   KC, MC    K values and rows of a cache block; KC 0 means all of K
//   PANELS    panels of 16 columns that the inner kernel takes at once
//   PREFETCH  bytes that the weight stream is fetched ahead
#include <algorithm>

#include "activations.h"
#include "micro_portable.h"
#ifndef NO_SIMD
#include "micro.h"
#endif

namespace {

constexpr int WIDTH = PANELS * 16;
constexpr int64_t TILES = std::max(1, MC / MR);  // of a cache block
static_assert(KC % 32 == 0);

struct Problem {
    const GemmArgs& args;
    Activations& x;
    int64_t panels() const { return (args.n + 15) / 16; }
    int64_t blocks() const { return args.k / BLOCK; }
    int64_t panel_bytes() const { return args.k / 8 * 64; }
    int64_t scale_bytes() const { return blocks() * 16; }
    const uint8_t* header() const { return args.w.scales; }
};

// c [rows][WIDTH] += `tile` times PANELS panels from `panel`, over blocks [begin, end)
void add_tile(const Problem& of, int64_t tile, int64_t panel, int64_t begin, int64_t end, float* c) {
    const uint8_t* w = of.args.w.codes + panel * of.panel_bytes() + begin * (BLOCK / 8) * 64;
    const uint8_t* ws = of.header() + 64 + panel * of.scale_bytes() + begin * 16;
    // past the last panel the inner kernel repeats it: computed and thrown away
    const int64_t last = std::min<int64_t>(PANELS, of.panels() - panel) - 1;
    const Tile x = of.x.tile(tile).from(begin);
    const auto run = [&](auto&& kernel) {
        kernel(w, of.panel_bytes(), ws, of.scale_bytes(), last, x, end - begin, of.header(), c);
    };
    if (of.x.scheme == Scheme::CAREFUL) return run(micro_portable<Scheme::CAREFUL>);
#ifdef NO_SIMD
    run(micro_portable<Scheme::MULTIPLY>);
#else
    run(micro<MR == RG>);
#endif
}

// `scale` is a power of two, of which `alpha` knows nothing: no row sees the scheme of another's batch
inline void store_row(const GemmArgs& args, float scale, int64_t at, int64_t columns, const float* c) {
    const float alpha = *args.x.tensor_scale * *args.w.tensor_scale;
    if (args.out_is_bf16) {
        uint16_t* out = static_cast<uint16_t*>(args.out) + at;
        for (int64_t i = 0; i < columns; ++i) out[i] = to_bf16(alpha * (scale * c[i]));
    } else {
        float* out = static_cast<float*>(args.out) + at;
        for (int64_t i = 0; i < columns; ++i) out[i] = alpha * (scale * c[i]);
    }
}

// rows [row, row_end) of the group of `panel`
void store(const Problem& of, int64_t row, int64_t row_end, int64_t panel, const float* c) {
    const float scale = of.x.scheme == Scheme::CAREFUL ? 1.0f : simd::EPILOGUE;
    const int64_t columns = of.args.n - panel * 16;
    for (int64_t r = row; r < row_end; ++r, c += WIDTH) {
        const int64_t at = r * of.args.n + panel * 16;
        if (columns >= WIDTH) store_row(of.args, scale, at, WIDTH, c);  // inlined for this width
        else store_row(of.args, scale, at, columns, c);
    }
}

// tiles [tile, tile_end) times the panels of one group
void block(const Problem& of, int64_t tile, int64_t tile_end, int64_t panel, float* c) {
    const int64_t height = of.x.height, row = tile * height, row_end = std::min(of.args.m, tile_end * height);
    const int64_t step = KC ? KC / BLOCK : of.blocks();
    std::fill_n(c, (tile_end - tile) * height * WIDTH, 0.0f);
    for (int64_t begin = 0; begin < of.blocks(); begin += step) {
        const int64_t end = std::min(begin + step, of.blocks());
        for (int64_t t = tile; t < tile_end; ++t)
            add_tile(of, t, panel, begin, end, c + (t - tile) * height * WIDTH);
    }
    store(of, row, row_end, panel, c);
}

}  // namespace

extern "C" void gemm(const GemmArgs* args, ParallelFor run, int64_t threads) {
    constexpr int64_t TASKS = 64;  // a thread, so that all end at about the same time
    thread_local Activations x;
    unpack(*args, run, x);
    const Problem of{*args, x};
    const int64_t groups = ceil_div(of.panels(), PANELS);
    const int64_t row_blocks = ceil_div(x.tiles(), TILES);
    const int64_t chunks = std::min(groups, std::max(threads, TASKS * threads / row_blocks));
    parallel(run, row_blocks * chunks, [&](int64_t task) {
        alignas(64) thread_local float c[TILES * MR * WIDTH];
        const int64_t tile = task / chunks * TILES, chunk = task % chunks;
        const int64_t tile_end = std::min(of.x.tiles(), tile + TILES);  // x would be this thread's own
        for (int64_t g = groups * chunk / chunks; g < groups * (chunk + 1) / chunks; ++g)
            block(of, tile, tile_end, g * PANELS, c);
    });
}
