// NEON with the dot product of Armv8.2: 4 columns a vector, four vectors a panel.
#pragma once
#include <arm_neon.h>

#include "numbers.h"

namespace simd {

using Int = int32x4_t;
using Float = float32x4_t;
constexpr int LANES = 4;
constexpr int BIAS = 0;  // both operands of the dot product are signed
constexpr Scheme FAST = NVFP4 ? Scheme::MULTIPLY : Scheme::MAGIC;
constexpr float EPILOGUE = NVFP4 ? 0.25f : 1.0f;  // for doubled values

inline Int broadcast(const void* x) { return vdupq_n_s32(*static_cast<const int32_t*>(x)); }
inline Float load(const float* x) { return vld1q_f32(x); }
inline void store(float* to, Float x) { vst1q_f32(to, x); }

inline Int decode(uint8x16_t nibbles) {
    static constexpr int8_t TWICE[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    return vreinterpretq_s32_s8(vqtbl1q_s8(vld1q_s8(TWICE), nibbles));
}
inline Int low(const uint8_t* line) { return decode(vandq_u8(vld1q_u8(line), vdupq_n_u8(15))); }
inline Int high(const uint8_t* line) { return decode(vshrq_n_u8(vld1q_u8(line), 4)); }
inline Int dot(Int sum, Int weights, Int four) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(weights), vreinterpretq_s8_s32(four));
}

// four bytes, each in a lane of 32 bits
inline uint32x4_t widened(const uint8_t* bytes) {
    uint32_t four;
    std::memcpy(&four, bytes, 4);
    return vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)))));
}

template <Scheme>
struct Scales;

template <>
struct Scales<Scheme::MAGIC> {
    struct Column {  // the exponent, where that of a float stands
        Int bits;
        Column() = default;
        Column(const uint8_t* bytes, const uint8_t* header) {
            // only blocks of zeros lie outside the header's bounds
            const uint32x4_t held = vminq_u32(vmaxq_u32(widened(bytes), vdupq_n_u32(header[0])), vdupq_n_u32(header[1]));
            bits = vreinterpretq_s32_u32(vshlq_n_u32(held, 23));
        }
    };
    struct Row {
        Int bits;
        explicit Row(const uint32_t* factor) : bits(broadcast(factor)) {}
    };
    static Int begin(Int start, const Column& column) { return vaddq_s32(start, column.bits); }
    static Float finish(Float to, Int sum, const Column& column, const Row& row) {
        const Float magic = vreinterpretq_f32_s32(vaddq_s32(row.bits, column.bits));
        return vaddq_f32(to, vsubq_f32(vreinterpretq_f32_s32(sum), magic));
    }
};

template <>
struct Scales<Scheme::MULTIPLY> {
    struct Column {
        Float scale;
        Column() = default;
        Column(const uint8_t* bytes, const uint8_t*) {
            // exponent and mantissa of E4M3 as those of a float read 2^120 low
            const uint32x4_t raw = widened(bytes);
            const Float magnitude = vmulq_n_f32(
                vreinterpretq_f32_u32(vshlq_n_u32(vandq_u32(raw, vdupq_n_u32(0x7F)), 20)), 0x1p120f);
            const uint32x4_t sign = vshlq_n_u32(vandq_u32(raw, vdupq_n_u32(0x80)), 24);
            scale = vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(magnitude), sign));
        }
    };
    struct Row {
        Float scale;
        explicit Row(const uint32_t* factor) : scale(vreinterpretq_f32_s32(broadcast(factor))) {}
    };
    static Int begin(Int start, const Column&) { return start; }
    static Float finish(Float to, Int sum, const Column& column, const Row& row) {
        return vfmaq_f32(to, vcvtq_f32_s32(sum), vmulq_f32(column.scale, row.scale));
    }
};

}  // namespace simd
