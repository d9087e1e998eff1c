// What Python and the kernels agree on. Kept in step with launch.py by a test of struct sizes.
#pragma once
#include <cstdint>

struct Operand {
    const uint8_t* codes;
    const uint8_t* scales;
    const float* tensor_scale;
};

// out [m, n] = x [m, k] (canonical layout) times w (panel16 layout) transposed
struct GemmArgs {
    Operand x, w;
    void* out;
    int64_t m, n, k;
    int64_t out_is_bf16;  // else float32
    int64_t kc, mc;       // K values, a multiple of a sum's, and rows of a cache block; kc 0 means all of K
};

struct QuantizeArgs {
    const void* x;  // [rows, k], bf16 or float32
    uint8_t* codes;
    uint8_t* scales;
    float* tensor_scale;
    const float* amax;  // of the tensor, for NVFP4; null where it is to be found
    int64_t rows, k;
    int64_t x_is_bf16;
};

// Runs body(context, i) for every i in [0, tasks), on the pool's threads and the caller's.
using ParallelFor = void (*)(int64_t tasks, void (*body)(void*, int64_t), void* context);

template <class F>
void parallel(ParallelFor run, int64_t tasks, F&& body) {
    run(tasks, [](void* context, int64_t i) { (*static_cast<F*>(context))(i); }, &body);
}
