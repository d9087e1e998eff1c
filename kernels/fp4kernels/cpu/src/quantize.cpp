// bf16 or float32 rows to MXFP4, MXINT8 or NVFP4, bit for bit as reference.py. Compiled once per format
// and rule, without contraction: every product is rounded on its own.
//   NVFP4     0 or 1: the format
//   BITS      4 or 8: of a code; 8 is MXINT8
//   RULE      of E8M0 scales: 0 floor, 1 ceil, 2 rceil, 3 even, 4 floor for 3/4 of the values
#include <algorithm>
#include <cfloat>
#include <vector>

#include "abi.h"
#include "numbers.h"

namespace {

constexpr int BLOCK = NVFP4 ? 16 : 32;
constexpr int BYTES = BLOCK * BITS / 8;  // of a block's codes
constexpr int GROUP = 4096 / BLOCK;  // blocks that are worked on at once: they stay in the first cache
constexpr int64_t LEAST = (1 << 15) / GROUP / BLOCK, MOST = (1 << 18) / GROUP / BLOCK;  // groups a task
constexpr int64_t TASKS = 64;  // of tensors between: long ones fetch ahead, many share cores out evenly
constexpr int64_t PAST_CACHES = 8 << 20;  // bytes of codes from which on no cache would hold them for long

struct Float32 { float value; };
struct Bfloat16 { uint16_t bits; };

}  // namespace

#if defined(__AVX512BW__)
#include "blocks_avx512.h"
#else
#include "blocks_portable.h"
#endif

namespace {

inline float finite(float x) { return x > FLT_MAX ? FLT_MAX : x; }

// what all blocks of an NVFP4 tensor share
struct TensorScale {
    float per_amax, decode_scale;
    bool given;  // from outside: a block of Inf or NaN is then lost alone
};

// of one block, from its largest magnitude: the byte of its scale, and what values are multiplied by
#if NVFP4
inline void scale_of(float amax, const TensorScale& tensor, uint8_t& byte, float& multiplier) {
    const float wanted = amax * tensor.per_amax;
    const bool lost = tensor.given && to_bits(amax) >= 0x7F800000;
    byte = lost ? 0x7F : encode_e4m3(wanted > 448.0f ? 448.0f : wanted);
    multiplier = finite(1.0f / (decode_e4m3(byte) * tensor.decode_scale));
}
#else
// the biased exponent of the least power of two, from 2^-127 on, that x does not exceed
inline int exponent_above(float x) {
    const uint32_t bits = to_bits(x), exponent = bits >> 23;
    return int(exponent + ((bits & 0x7FFFFF) > (exponent ? 0 : 0x400000u)));
}

inline void scale_of(float amax, const TensorScale&, uint8_t& byte, float& multiplier) {
    constexpr int EMAX = BITS == 8 ? 0 : 2, MANTISSA = BITS == 8 ? 6 : 1;
    constexpr float MOST = BITS == 8 ? 127.0f / 64 : 6.0f;
    const uint32_t bits = to_bits(amax);
    const int exponent = RULE == 1   ? exponent_above(amax) - EMAX
                         : RULE == 2 ? exponent_above(amax / MOST)
                         : RULE == 3 ? int(((bits + (1u << (22 - MANTISSA))) >> 23) & 0xFF) - EMAX
                                     : int(bits >> 23) - EMAX;
    const int held = bits >= 0x7F800000 ? 255 : std::min(std::max(exponent, 0), 254);
    byte = uint8_t(held);
    const float inverse = from_bits(uint32_t(std::max((254 - held) * (1 << 23), 0x00400000)));
    multiplier = RULE == 4 ? inverse * 0.75f : inverse;
}
#endif

template <class T>
void quantize_blocks(const T* x, int64_t blocks, const TensorScale& tensor, bool past, uint8_t* codes, uint8_t* scales) {
    alignas(64) float amax[GROUP], multiplier[GROUP];
    alignas(64) uint8_t bytes[GROUP];
    for (int64_t b = 0; b < blocks; b += GROUP) {
        const int64_t count = std::min<int64_t>(GROUP, blocks - b);
        largest(x + b * BLOCK, count, amax);
        for (int i = 0; i < GROUP; ++i) scale_of(amax[i], tensor, bytes[i], multiplier[i]);
        std::copy_n(bytes, count, scales + b);
        encode(x + b * BLOCK, count, multiplier, codes + b * BYTES, past);
    }
}

template <class T>
void quantize_all(const QuantizeArgs& args, ParallelFor run) {
    const T* x = static_cast<const T*>(args.x);
    const int64_t blocks = args.rows * args.k / BLOCK;
    const int64_t groups = blocks / GROUP / TASKS, per_task = std::min(std::max(groups, LEAST), MOST) * GROUP;
    const int64_t tasks = (blocks + per_task - 1) / per_task;
    TensorScale tensor{};
#if NVFP4
    float whole;
    if (args.amax) {
        whole = *args.amax;
    } else {
        std::vector<float> most(tasks + 1, 0.0f);
        parallel(run, tasks, [&](int64_t task) {
            uint32_t found = 0;  // as bits, of which NaN's are the largest
            for (int64_t b = task * per_task, end = std::min(blocks, b + per_task); b < end; b += GROUP) {
                alignas(64) float amax[GROUP];
                largest(x + b * BLOCK, std::min<int64_t>(GROUP, end - b), amax);
                for (float one : amax) found = std::max(found, to_bits(one));
            }
            most[task] = from_bits(found);
        });
        whole = *std::max_element(most.begin(), most.end(), [](float a, float b) { return to_bits(a) < to_bits(b); });
    }
    const float most = 6.0f * 448.0f;
    float encode_scale = finite(most / whole);
    if (whole == 0 || encode_scale == 0) encode_scale = 1;
    tensor = {encode_scale * (1.0f / 6.0f), 1.0f / encode_scale, args.amax != nullptr};
    *args.tensor_scale = whole / most;
#else
    *args.tensor_scale = RULE == 4 ? 4.0f / 3.0f : 1.0f;
#endif
    parallel(run, tasks, [&](int64_t task) {
        const int64_t b = task * per_task;
        quantize_blocks(x + b * BLOCK, std::min(blocks - b, per_task), tensor, blocks * BYTES >= PAST_CACHES,
                        args.codes + b * BYTES, args.scales + b);
    });
}

}  // namespace

extern "C" void quantize(const QuantizeArgs* args, ParallelFor run) {
    if (args->x_is_bf16) quantize_all<Bfloat16>(*args, run);
    else quantize_all<Float32>(*args, run);
}
