// Softmax over one tile, and tiles joined: everything in powers of two.
//
// A row's state is (top, sum, out): out = sum over keys of 2^(score - top) * value. Two states over
// different keys are joined by scaling both to the higher top.
#pragma once
#include "attention_float.h"

// 2^x for x <= 0, within 2^-23 of it, relatively; 0 below 2^-125; NaN stays. The polynomial is off
// by 2^-28.9, the rest is rounding.
inline Lanes exp2_lanes(Lanes x) {
    const Lanes least = all_lanes(-125.0f);
    const LaneBits gone = x < least;
    const Lanes near = gone ? least : x;
    const Lanes magic = all_lanes(0x1.8p23f);
    const Lanes shifted = near + magic;  // rounds to a whole number, in the low bits
    const Lanes r = near - (shifted - magic);
    Lanes y = multiply_add(r, all_lanes(0x1.41fbbcp-13f), all_lanes(0x1.5f3e54p-10f));
    y = multiply_add(y, r, all_lanes(0x1.3b2d4cp-7f));
    y = multiply_add(y, r, all_lanes(0x1.c6aee8p-5f));
    y = multiply_add(y, r, all_lanes(0x1.ebfbdcp-3f));
    y = multiply_add(y, r, all_lanes(0x1.62e430p-1f));
    y = multiply_add(y, r, all_lanes(1.0f));
    const LaneBits power = ((LaneBits)shifted - (LaneBits)magic + 127) << 23;
    const Lanes held = y * (Lanes)power;
    return gone ? Lanes{} : held;
}

// of 16 lanes; a NaN among them may be lost here, but not in the sum of the weights
inline float most_of(Lanes x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float y[LANES];
    store_lanes(y, x);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) y[i] = y[i] > y[i + width] ? y[i] : y[i + width];
    return y[0];
#endif
}

struct State {
    float top = NEVER, sum = 0.0f;
};

// Scores [TILE] to weights in [0, 1]: those outside [begin, end) are zero.
inline State soften(float* scores, int begin, int end) {
    for (int i = 0; i < begin; ++i) scores[i] = NEVER;
    for (int i = end; i < TILE; ++i) scores[i] = NEVER;
    Lanes top = load_lanes(scores);
    for (int i = LANES; i < TILE; i += LANES) {
        const Lanes next = load_lanes(scores + i);
        top = top > next ? top : next;
    }
    State tile{most_of(top), 0.0f};
    const Lanes from = all_lanes(tile.top == NEVER ? 0.0f : tile.top);
    Lanes sum = {};
    for (int i = 0; i < TILE; i += LANES) {
        const Lanes weights = exp2_lanes(load_lanes(scores + i) - from);
        sum += weights;
        store_lanes(scores + i, weights);
    }
    tile.sum = sum_of(sum);
    return tile;
}

// state += more; their sums of values are `out` and `added`, of WIDTH floats
inline void join(State& state, float* out, const State& more, const float* added) {
    const float top = state.top > more.top ? state.top : more.top;
    const float from = top == NEVER ? 0.0f : top;
    const Lanes shares = exp2_lanes(Lanes{state.top - from, more.top - from});
    const float old = shares[0], fresh = shares[1];
    state.top = top;
    state.sum = state.sum * old + more.sum * fresh;
    for (int d = 0; d < WIDTH; d += LANES)
        store_lanes(out + d, multiply_add(load_lanes(out + d), all_lanes(old), load_lanes(added + d) * fresh));
}
