// P rounded to FP4 and back, and the scales of its blocks.
#pragma once
#include <algorithm>

#include "attention_lanes.h"
#include "numbers.h"

constexpr int BLOCK = NVFP4 ? 16 : 32;

inline float decode_scale(uint8_t byte) { return NVFP4 ? decode_e4m3(byte) : decode_e8m0(byte); }

// The scale of a block of numbers up to `most`, at least 0, and what they are multiplied by. E4M3 rounds
// most / 6 to nearest; E8M0 is the least power of two that clips nothing. Unless `rounded`, numbers are
// divided by what the scale was before it was rounded.
inline float scale_of(float most, bool rounded, float& multiplier) {
    const float wanted = most / 6.0f;
    if (NVFP4) {
        const float scale = decode_e4m3(encode_e4m3(std::min(wanted, 448.0f)));
        multiplier = rounded ? std::min(1.0f / scale, std::numeric_limits<float>::max()) : most > 0 ? 6.0f / most : 1.0f;
        return scale;
    }
    const uint32_t bits = to_bits(wanted), exponent = bits >> 23;
    const uint32_t byte = std::min<uint32_t>(exponent + ((bits & 0x7FFFFF) > (exponent ? 0 : 0x400000u)), 254);
    multiplier = decode_e8m0(uint8_t(254 - byte));
    return decode_e8m0(uint8_t(byte));
}

// x of 0 and more to the nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6, a tie to the even code: below 1 the step
// is 0.5, which adding 2^22 rounds at; from 1 up the mantissa has one bit.
inline Lanes round_e2m1(Lanes x) {
    const Lanes y = x < 6.0f ? x : all_lanes(6.0f);
    const Lanes small = (y + all_lanes(0x1p22f)) - all_lanes(0x1p22f);
    const LaneBits bits = (LaneBits)y;
    const Lanes large = (Lanes)((bits + 0x1FFFFF + ((bits >> 22) & 1)) & ~0x3FFFFF);
    return y < 1.0f ? small : large;
}

// p [COUNT] of 0 and more, in place
template <int COUNT>
inline void round_row(float* p, bool rounded) {
    constexpr int BLOCKS = COUNT / BLOCK;
    float scales[BLOCKS], multipliers[BLOCKS];
    for (int b = 0; b < BLOCKS; ++b) {
        Lanes most = load_lanes(p + b * BLOCK);
        if (BLOCK > LANES) {
            const Lanes next = load_lanes(p + b * BLOCK + BLOCK - LANES);
            most = most > next ? most : next;
        }
        scales[b] = most_of(most);
    }
    for (int b = 0; b < BLOCKS; ++b) scales[b] = scale_of(scales[b], rounded, multipliers[b]);
    for (int i = 0; i < COUNT; i += LANES)
        store_lanes(p + i, round_e2m1(load_lanes(p + i) * multipliers[i / BLOCK]) * scales[i / BLOCK]);
}
