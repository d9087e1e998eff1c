// W4A8 GEMM: activations of MXINT8, weights of FP4, block sums in exact integers.
// Compiled once per configuration, with the -D of gemm.cpp.
#include "int8.h"
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
    if (activations.scheme == Scheme::CAREFUL) return run(micro_portable<Scheme::CAREFUL, int8::careful>);
#ifdef NO_SIMD
    run(micro_portable<Scheme::MULTIPLY>);
#else
    run(micro<MR == RG, int8::Fast>);
#endif
}

}  // namespace

extern "C" void gemm(const GemmArgs* args, ParallelFor run, int64_t threads) {
    thread_local Activations held;
    Activations& x = held;  // the pool's threads would see their own
    int8::arrange(*args, run, x);
    const Panels w{args->w, args->n, args->k};
    const float scale = x.scheme == Scheme::CAREFUL ? 1.0f : int8::EPILOGUE;
    multiply(*args, run, threads, scale, [&](int64_t tile, int64_t panel, int64_t begin, int64_t end, float* c) {
        add_tile(w, x, tile, panel, begin, end, c);
    });
}
