// W4A4 GEMM in exact integers. Compiled once per configuration, with -D of
//   NVFP4     0 or 1: the format
//   MR, RG    rows of a tile, for which weights are decoded once; rows in flight of them
//   PANELS    panels of 16 columns that the inner kernel takes at once
//   PREFETCH  bytes that codes are fetched ahead, and scales as far
#include "activations.h"
#include "micro_portable.h"
#ifndef NO_SIMD
#include "micro.h"
#endif

namespace {

// c [rows][WIDTH] += `tile` times PANELS panels from `panel`, over blocks [begin, end)
void add_tile(const Panels& of, Activations& activations, int64_t tile, int64_t panel, int64_t begin, int64_t end, float* c) {
    const Tile x = activations.tile(tile).from(begin);
    const auto run = [&](auto&& kernel) {
        kernel(of.codes(panel, begin), of.bytes(), of.scales(panel, begin), of.scale_bytes(), of.last(panel), x,
               end - begin, of.header(), c);
    };
    if (activations.scheme == Scheme::CAREFUL) return run(micro_portable<Scheme::CAREFUL>);
#ifdef NO_SIMD
    run(micro_portable<Scheme::MULTIPLY>);
#else
    run(micro<MR == RG>);
#endif
}

}  // namespace

extern "C" void gemm(const GemmArgs* args, ParallelFor run, int64_t threads) {
    thread_local Activations held;
    Activations& x = held;  // the pool's threads would see their own
    unpack(*args, run, x);
    const Panels w{args->w, args->n, args->k};
    const float scale = x.scheme == Scheme::CAREFUL ? 1.0f : simd::EPILOGUE;
    multiply(*args, run, threads, scale, [&](int64_t tile, int64_t panel, int64_t begin, int64_t end, float* c) {
        add_tile(w, x, tile, panel, begin, end, c);
    });
}
