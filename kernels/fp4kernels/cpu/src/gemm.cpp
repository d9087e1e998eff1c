// W4A4 GEMM in exact integers. Compiled once per configuration, with -D of
//   NVFP4     0 or 1: the format
//   MR, RG    rows of a tile, rows in flight in the inner kernel
//   KC, MC    K values and rows of a cache block; KC 0 means all of K
//   PANELS    panels of 16 columns that the inner kernel takes at once
//   PREFETCH  bytes that the weight stream is fetched ahead
#include <algorithm>

#include "activations.h"
#include "micro_portable.h"
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
#include "micro_avx512.h"
#else
constexpr float FAST_EPILOGUE = 0.25f;
#endif

namespace {

constexpr int WIDTH = PANELS * 16;
constexpr int64_t ROWS = std::max(1, MC / MR) * MR;  // of a cache block: whole tiles
static_assert(KC % 32 == 0);

struct Problem {
    const GemmArgs& args;
    const Activations& x;
    int64_t panels() const { return (args.n + 15) / 16; }
    int64_t blocks() const { return args.k / BLOCK; }
    int64_t panel_bytes() const { return args.k / 8 * 64; }
    int64_t scale_bytes() const { return blocks() * 16; }
    const uint8_t* header() const { return args.w.scales; }
};

// c [R][WIDTH] += R rows of `tile` times PANELS panels from `panel`, over blocks [begin, end)
template <int R>
void add_tile(const Problem& of, int64_t tile, int64_t panel, int64_t begin, int64_t end, float* c) {
    const uint8_t* w = of.args.w.codes + panel * of.panel_bytes() + begin * (BLOCK / 8) * 64;
    const uint8_t* ws = of.header() + 64 + panel * of.scale_bytes() + begin * 16;
    // past the last panel the inner kernel repeats it: computed and thrown away
    const int64_t last = std::min<int64_t>(PANELS, of.panels() - panel) - 1;
    const int64_t cell = (tile * of.blocks() + begin) * MR;
    const uint32_t* x = of.x.values.data() + (tile * of.args.k + begin * BLOCK) / 4 * MR;
    const uint32_t* factor = of.x.factor.data() + cell;
    if (of.x.scheme == Scheme::CAREFUL) {
        micro_portable<Scheme::CAREFUL, MR>(w, of.panel_bytes(), ws, of.scale_bytes(), last, x, factor, end - begin, of.header(), c);
        return;
    }
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
    micro<R>(w, of.panel_bytes(), ws, of.scale_bytes(), last, x, of.x.start.data() + cell, factor, end - begin, of.header(), c);
#else
    micro_portable<Scheme::MULTIPLY, R>(w, of.panel_bytes(), ws, of.scale_bytes(), last, x, factor, end - begin, of.header(), c);
#endif
}

// the smallest kernel that covers the rows: a last tile of 3 rows runs as 4, not as MR
template <int R = 1>
void add_rows(int64_t rows, const Problem& of, int64_t tile, int64_t panel, int64_t begin, int64_t end, float* c) {
    if constexpr (R < MR) {
        constexpr int next = R < 4 ? 2 * R : R + 4;
        if (rows > R) return add_rows<(next < MR ? next : MR)>(rows, of, tile, panel, begin, end, c);
    }
    add_tile<R>(of, tile, panel, begin, end, c);
}

void store(const Problem& of, int64_t row, int64_t panel, const float* c) {
    const float scale = of.x.scheme == Scheme::CAREFUL ? 1.0f : FAST_EPILOGUE;
    const float alpha = scale * (*of.args.x.tensor_scale * *of.args.w.tensor_scale);
    const int64_t at = row * of.args.n + panel * 16;
    const int64_t columns = std::min<int64_t>(WIDTH, of.args.n - panel * 16);
    if (of.args.out_is_bf16) {
        uint16_t* out = static_cast<uint16_t*>(of.args.out) + at;
        for (int64_t i = 0; i < columns; ++i) out[i] = to_bf16(alpha * c[i]);
    } else {
        float* out = static_cast<float*>(of.args.out) + at;
        for (int64_t i = 0; i < columns; ++i) out[i] = alpha * c[i];
    }
}

// rows [row, row_end) times the panels of one group
void block(const Problem& of, int64_t row, int64_t row_end, int64_t panel, float* c) {
    const int64_t tiles = (row_end - row + MR - 1) / MR;
    const int64_t step = KC ? KC / BLOCK : of.blocks();
    std::fill_n(c, tiles * MR * WIDTH, 0.0f);
    for (int64_t begin = 0; begin < of.blocks(); begin += step) {
        const int64_t end = std::min(begin + step, of.blocks());
        for (int64_t t = 0; t < tiles; ++t)
            add_rows(row_end - row - t * MR, of, row / MR + t, panel, begin, end, c + t * MR * WIDTH);
    }
    for (int64_t r = row; r < row_end; ++r) store(of, r, panel, c + (r - row) * WIDTH);
}

}  // namespace

extern "C" void gemm(const GemmArgs* args, ParallelFor run, int64_t threads) {
    thread_local Activations x;
    unpack(*args, run, x);
    const Problem of{*args, x};
    const int64_t groups = (of.panels() + PANELS - 1) / PANELS;
    const int64_t row_blocks = (args->m + ROWS - 1) / ROWS;
    const int64_t chunks = std::min(groups, std::max<int64_t>(threads, 16 * threads / row_blocks));
    parallel(run, row_blocks * chunks, [&](int64_t task) {
        alignas(64) thread_local float c[ROWS * WIDTH];
        const int64_t row = task / chunks * ROWS, chunk = task % chunks;
        const int64_t row_end = std::min(args->m, row + ROWS);
        for (int64_t g = groups * chunk / chunks; g < groups * (chunk + 1) / chunks; ++g)
            block(of, row, row_end, g * PANELS, c);
    });
}
