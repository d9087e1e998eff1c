// Softmax over one tile, and tiles joined: everything in powers of two.
//
// A row's state is (top, sum, out): out = sum over keys of 2^(score - top) * value. Two states over
// different keys are joined by scaling both to the higher top.
#pragma once
#include "attention.h"

struct State {
    float top = NEVER, sum = 0.0f;
};

// What two states that are joined are scaled by.
struct Share {
    float old, fresh;
};

// Scores [R], TILE apart, to weights in [0, 1]: those outside [begin, end) are zero.
template <int R>
inline void soften(float* scores, const int* begin, const int* end, State* states) {
    Lanes top[R], sum[R] = {};
    for (int r = 0; r < R; ++r) {
        float* row = scores + r * TILE;
        for (int i = 0; i < begin[r]; ++i) row[i] = NEVER;
        for (int i = end[r]; i < TILE; ++i) row[i] = NEVER;
        top[r] = load_lanes(row);
        for (int i = LANES; i < TILE; i += LANES) {
            const Lanes next = load_lanes(row + i);
            top[r] = top[r] > next ? top[r] : next;
        }
    }
    for (int r = 0; r < R; ++r) {
        states[r].top = most_of(top[r]);
        top[r] = all_lanes(states[r].top == NEVER ? 0.0f : states[r].top);
    }
    for (int i = 0; i < TILE; i += LANES)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const Lanes weights = exp2_lanes(load_lanes(scores + r * TILE + i) - top[r]);
            sum[r] += weights;
            store_lanes(scores + r * TILE + i, weights);
        }
    for (int r = 0; r < R; ++r) states[r].sum = sum_of(sum[r]);
}

// states [R] += more; what their sums of values are to be scaled by
template <int R>
inline void join(State* states, const State* more, Share* shares) {
    static_assert(2 * R <= LANES);
    Lanes down = {};
    for (int r = 0; r < R; ++r) {
        const float top = states[r].top > more[r].top ? states[r].top : more[r].top;
        const float from = top == NEVER ? 0.0f : top;
        down[2 * r] = states[r].top - from, down[2 * r + 1] = more[r].top - from;
        states[r].top = top;
    }
    const Lanes by = exp2_lanes(down);
    for (int r = 0; r < R; ++r) {
        shares[r] = {by[2 * r], by[2 * r + 1]};
        states[r].sum = states[r].sum * shares[r].old + more[r].sum * shares[r].fresh;
    }
}

// out [WIDTH], by its old share, += added
inline void add_to(float* out, const Share& share, const float* added) {
    for (int d = 0; d < WIDTH; d += LANES)
        store_lanes(out + d, multiply_add(load_lanes(out + d), all_lanes(share.old), load_lanes(added + d) * share.fresh));
}
