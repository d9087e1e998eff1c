// bf16 or float32 rows to MXFP4 (floor rule) or NVFP4, bit for bit as reference.py. Compiled with
// -DNVFP4=0 or 1 and without contraction: every product is rounded on its own.
#include <algorithm>
#include <cfloat>
#include <vector>

#include "abi.h"
#include "numbers.h"

namespace {

constexpr int BLOCK = NVFP4 ? 16 : 32;
constexpr int64_t CHUNK = 1 << 15;  // values a task

struct Span {
    const void* x;
    bool bf16;
    void load(int64_t at, float* to) const {
        if (bf16) {
            const uint16_t* from = static_cast<const uint16_t*>(x) + at;
            for (int i = 0; i < BLOCK; ++i) to[i] = from_bf16(from[i]);
        } else {
            std::memcpy(to, static_cast<const float*>(x) + at, BLOCK * sizeof(float));
        }
    }
};

// the bits of |x| order as integers do, NaN above all: no special case is needed
uint32_t amax_bits(const float* x) {
    uint32_t most = 0;
    for (int i = 0; i < BLOCK; ++i) most = std::max(most, to_bits(x[i]) & 0x7FFFFFFF);
    return most;
}

void encode(const float* x, float multiplier, uint8_t* codes) {
    uint8_t code[BLOCK];
    for (int i = 0; i < BLOCK; ++i) code[i] = encode_e2m1(x[i] * multiplier);
    for (int i = 0; i < BLOCK / 2; ++i) codes[i] = code[2 * i] | (code[2 * i + 1] << 4);
}

}  // namespace

extern "C" void quantize(const QuantizeArgs* args, ParallelFor run) {
    const int64_t blocks = args->rows * args->k / BLOCK;
    const int64_t per_task = CHUNK / BLOCK, tasks = (blocks + per_task - 1) / per_task;
    const Span span{args->x, args->x_is_bf16 != 0};
    auto each_block = [&](auto&& body) {
        parallel(run, tasks, [&](int64_t task) {
            float x[BLOCK];
            const int64_t end = std::min(blocks, (task + 1) * per_task);
            for (int64_t b = task * per_task; b < end; ++b) {
                span.load(b * BLOCK, x);
                body(task, b, x);
            }
        });
    };
#if NVFP4
    std::vector<uint32_t> most(tasks + 1, 0);
    each_block([&](int64_t task, int64_t, const float* x) {
        most[task] = std::max(most[task], amax_bits(x));
    });
    const float amax = from_bits(*std::max_element(most.begin(), most.end()));
    const float largest = 6.0f * 448.0f, raw = largest / amax;
    float encode_scale = raw > FLT_MAX ? FLT_MAX : raw;
    if (amax == 0 || encode_scale == 0) encode_scale = 1;
    const float per_amax = encode_scale * (1.0f / 6.0f), decode_scale = 1.0f / encode_scale;
    *args->tensor_scale = amax / largest;
    each_block([&](int64_t, int64_t b, const float* x) {
        const float wanted = from_bits(amax_bits(x)) * per_amax;
        const uint8_t scale = encode_e4m3(wanted > 448.0f ? 448.0f : wanted);
        const float inverse = 1.0f / (decode_e4m3(scale) * decode_scale);
        args->scales[b] = scale;
        encode(x, inverse > FLT_MAX ? FLT_MAX : inverse, args->codes + b * BLOCK / 2);
    });
#else
    each_block([&](int64_t, int64_t b, const float* x) {
        const int exponent = amax_bits(x) >> 23;  // of amax = 2^(exponent - 127) * [1, 2)
        const uint8_t scale = exponent == 255 ? 255 : std::max(exponent - 2, 0);
        args->scales[b] = scale;
        encode(x, decode_e8m0(scale == 255 ? 0 : 254 - scale), args->codes + b * BLOCK / 2);
    });
#endif
}
