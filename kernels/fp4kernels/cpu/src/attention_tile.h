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
struct KeyTile {
    bool decode(const Place*, int, Ahead&) { return false; }
};
inline void integer_scores(const KeyTile&, int, const void*, float (*)[TILE], Ahead&) {}
#endif

#if INTEGERS && VALUES < 2
#include "attention_values.h"
#else  // and values
struct ValueTile {
    bool decode(const Place*, int, Ahead&) { return false; }
};
template <int R>
inline void integer_sums(const ValueTile&, int, const float (*)[TILE], float (*)[WIDTH]) {}
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
    int tokens;
    int64_t first;  // position of its first token
};

// What one thread decodes a tile into.
struct Scratch {
    KeyTile keys;
    ValueTile values;
    alignas(64) float scores[ROWS][TILE];
    alignas(64) float sums[ROWS][WIDTH];
};

// The keys that a row sees.
struct Span {
    int64_t begin, end;
    int clip(int64_t at, const Tile& tile) const { return int(std::min<int64_t>(std::max<int64_t>(at - tile.first, 0), tile.tokens)); }
};

// sums [rows][WIDTH] = scores [rows][TILE], by now weights, times the values
inline void take_sums(const Tile& tile, bool integer, int rows, Scratch& to, Ahead& ahead) {
    if (!integer) {
        alignas(64) float plain[ROWS][HEAD_DIM];
        float_sums(tile.values, tile.tokens, to.scores, rows, plain, ahead);
        std::memset(to.sums, 0, sizeof to.sums);
        for (int r = 0; r < rows; ++r)
            for (int d = 0; d < HEAD_DIM; ++d) to.sums[r][place_of(d)] = plain[r][d];
        return;
    }
    int r = 0;
    if (P_BYTES < 3)  // two rows of three bytes need more than the registers there are
        for (; r + 1 < rows; r += 2) integer_sums<2>(to.values, tile.tokens, to.scores + r, to.sums + r);
    for (; r < rows; ++r) integer_sums<1>(to.values, tile.tokens, to.scores + r, to.sums + r);
}

// `states` and `out` [rows] take the tile in; `queries` are padded to whole ROWS
inline void add_tile(const Tile& tile, const Query* queries, const Span* spans, int64_t rows, State* states, float* out, Scratch& scratch, Ahead& ahead) {
    const bool integer_keys = scratch.keys.decode(tile.keys, tile.tokens, ahead);
    const bool integer_values = scratch.values.decode(tile.values, tile.tokens, ahead);
    for (int64_t first = 0; first < rows; first += ROWS) {
        const int count = int(std::min<int64_t>(ROWS, rows - first));
        if (integer_keys)
            integer_scores(scratch.keys, tile.tokens, queries + first, scratch.scores, ahead);
        else
            float_scores(tile.keys, tile.tokens, queries[first].values, sizeof(Query) / sizeof(float), scratch.scores, ahead);
        State more[ROWS];
        for (int r = 0; r < count; ++r) {
            const Span& span = spans[first + r];
            more[r] = soften(scratch.scores[r], span.clip(span.begin, tile), span.clip(span.end, tile));
        }
        take_sums(tile, integer_values, count, scratch, ahead);
        for (int r = 0; r < count; ++r) join(states[first + r], out + (first + r) * WIDTH, more[r], scratch.sums[r]);
    }
}
