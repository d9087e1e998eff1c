// One tile of keys and values of one kv head, for all query rows of that head.
#pragma once
#include <memory>
#include <vector>

#include "attention_float.h"
#include "attention_softmax.h"

#if INTEGERS && KEYS < 2
#include "attention_keys.h"
#else  // keys are floats
struct IntegerQuery {
    void set(const float*, double) {}
};
struct KeyStep {
    bool decode(const Place&, int, const Place&) { return false; }
};
constexpr int TOGETHER = 1;
inline void integer_scores(const KeyStep*, const void*, float*, const Place*) {}
#endif

#if INTEGERS && VALUES < 2
#include "attention_values.h"
#else  // and values
struct ValueTile {
    bool decode(const Place*, int, const Place*) { return false; }
};
template <int R>
inline void integer_sums(const ValueTile&, int, const float*, const Share*, float*) {}
constexpr int place_of(int d) { return d; }
#endif

// A query row, ready for either way to take scores.
struct Query {
    alignas(64) float values[HEAD_DIM];  // times the scale
    IntegerQuery integer;

    void set(const float* q, double scale) {
        for (int d = 0; d < HEAD_DIM; ++d) values[d] = float(q[d] * scale);
        integer.set(q, scale);
    }
};

struct Tile {
    Place keys[TILE / STEP], values[TILE / STEP];
    Place next_keys[TILE / STEP] = {}, next_values[TILE / STEP] = {};  // to be fetched
    int tokens;
    int64_t first;  // position of its first token
};

// What one thread works on.
struct Scratch {
    KeyStep keys[TOGETHER];
    ValueTile values;
    std::vector<float> scores;  // [padded rows][TILE]
    std::vector<State> states;  // [rows] of the tile
    std::vector<Share> shares;
    std::vector<float> plain;  // [rows][HEAD_DIM]

    void fit(int64_t rows, int64_t padded) {
        scores.resize(padded * TILE), states.resize(rows), shares.resize(rows), plain.resize(rows * HEAD_DIM);
    }
};

// The keys that a row sees.
struct Span {
    int64_t begin, end;
    int clip(int64_t at, const Tile& tile) const { return int(std::min<int64_t>(std::max<int64_t>(at - tile.first, 0), tile.tokens)); }
};

// scores [rows][TILE] of all keys
inline void take_scores(const Tile& tile, const Query* queries, int64_t rows, Scratch& to) {
    const int steps = (tile.tokens + STEP - 1) / STEP;
    const auto held = [&](int s) { return std::min(STEP, tile.tokens - s * STEP); };
    for (int s = 0; s < steps; s += TOGETHER) {
        const int end = std::min(s + TOGETHER, steps);  // beyond it, old keys give scores that no one reads
        bool integer = true;
        for (int i = s; integer && i < end; ++i) integer = to.keys[i - s].decode(tile.keys[i], held(i), tile.next_keys[i]);
        for (int64_t first = 0; first < rows; first += ROWS) {
            float* scores = to.scores.data() + first * TILE;
            if (integer)
                integer_scores(to.keys, queries + first, scores + s * STEP, tile.next_keys + s);
            else
                for (int i = s; i < end; ++i)
                    float_scores(tile.keys[i], held(i), queries[first].values, sizeof(Query) / sizeof(float), scores + i * STEP, tile.next_keys[i]);
        }
    }
}

// R rows from `r` on: scores to weights, and the tile's states joined to `states`
template <int R>
inline void take_weights(const Tile& tile, const Span* spans, int64_t r, State* states, Scratch& to) {
    int begin[R], end[R];
    for (int i = 0; i < R; ++i) begin[i] = spans[r + i].clip(spans[r + i].begin, tile), end[i] = spans[r + i].clip(spans[r + i].end, tile);
    soften<R>(to.scores.data() + r * TILE, begin, end, to.states.data() + r);
    join<R>(states + r, to.states.data() + r, to.shares.data() + r);
}

// out [rows][WIDTH] takes in the weights times the values
inline void take_sums(const Tile& tile, int64_t rows, float* out, Scratch& to) {
    const float* weights = to.scores.data();
    const Share* shares = to.shares.data();
    if (!to.values.decode(tile.values, tile.tokens, tile.next_values)) {
        float_sums(tile.values, tile.tokens, weights, rows, to.plain.data(), tile.next_values);
        for (int64_t r = 0; r < rows; ++r)
            for (int d = 0; d < HEAD_DIM; ++d) {
                float& sum = out[r * WIDTH + place_of(d)];
                sum = sum * shares[r].old + to.plain[r * HEAD_DIM + d] * shares[r].fresh;
            }
        return;
    }
    int64_t r = 0;
    if (P_BYTES < 3)  // two rows of three bytes need more than the registers there are
        for (; r + 1 < rows; r += 2) integer_sums<2>(to.values, tile.tokens, weights + r * TILE, shares + r, out + r * WIDTH);
    for (; r < rows; ++r) integer_sums<1>(to.values, tile.tokens, weights + r * TILE, shares + r, out + r * WIDTH);
}

// `states` and `out` [rows] take the tile in; `queries` are padded to whole ROWS
inline void add_tile(const Tile& tile, const Query* queries, const Span* spans, int64_t rows, State* states, float* out, Scratch& scratch) {
    take_scores(tile, queries, rows, scratch);
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) take_weights<4>(tile, spans, r, states, scratch);
    for (; r < rows; ++r) take_weights<1>(tile, spans, r, states, scratch);
    take_sums(tile, rows, out, scratch);
}
