// Attention of a few queries a sequence over a paged KV cache; attention.h says what is compiled in.
//
// The keys of every sequence are split at multiples of SPLIT, whatever the number of threads; each
// split leaves a state for every query row, and these are joined in order.
#include <algorithm>
#include <cmath>

#include "attention_tile.h"

namespace {

constexpr double LOG2_E = 1.4426950408889634, LN_2 = 0.6931471805599453;

struct Split {
    int64_t sequence, first, end;  // positions of its keys
};

// All that is worked out before the first key is read.
struct Work {
    std::vector<Split> splits;
    std::vector<int64_t> begin;  // of each sequence's splits, and the end of the last
    std::vector<Query> queries;  // [sequence][kv head][padded rows]
    std::vector<State> states;   // [split][kv head][rows]
    std::vector<float> out;      // [split][kv head][rows][WIDTH]
};

struct Problem {
    const AttentionArgs& args;
    Work& work;
    int64_t group() const { return args.heads / args.kv_heads; }
    int64_t rows() const { return args.queries * group(); }
    int64_t padded() const { return (rows() + ROWS - 1) / ROWS * ROWS; }

    // what query `i` of a sequence sees
    Span span(int64_t sequence, int64_t i) const {
        const int64_t end = args.lengths[sequence] - args.queries + i + 1;
        return {args.window ? std::max<int64_t>(0, end - args.window) : 0, end};
    }

    // 16 tokens of head `h` from position `at`
    Place place(const CacheOperand& x, Format f, int64_t sequence, int64_t at, int64_t h) const {
        const int64_t page = args.page_table[sequence * args.table_pages + at / args.page_size];
        const int64_t row = page * args.page_size * args.kv_heads + at % args.page_size * args.token_rows + h * args.head_rows;
        return {x.codes + row * row_bytes(f), x.scales + row * row_scales(f),
                args.token_rows * row_bytes(f), args.token_rows * row_scales(f)};
    }

    // Part `part` of what all heads hold of the 16 tokens from `at` on, as if it were one head's.
    Place part(const CacheOperand& x, Format f, int64_t sequence, int64_t at, int64_t part) const {
        const Place all = place(x, f, sequence, at, 0);
        return {all.codes + part * STEP * row_bytes(f), all.scales + part * STEP * row_scales(f), row_bytes(f), row_scales(f)};
    }

    // What is fetched ahead while head `h` works on step `s` of a tile, AHEAD tiles before `at` is: its
    // own tokens, or, where a task has all heads of a page, the next part, so that memory is read in order.
    void look_ahead(const Split& split, int64_t at, int64_t h, int s, bool together, Tile& to) const {
        const int64_t number = together ? h * (TILE / STEP) + s : s;
        const int64_t from = at + (together ? number / args.kv_heads : number) * STEP;
        if (!AHEAD || from >= split.end) return;
        to.next_keys[s] = together ? part(args.k, K, split.sequence, from, number % args.kv_heads) : place(args.k, K, split.sequence, from, h);
        to.next_values[s] = together ? part(args.v, V, split.sequence, from, number % args.kv_heads) : place(args.v, V, split.sequence, from, h);
    }
};

void prepare(const Problem& of) {
    const AttentionArgs& args = of.args;
    Work& work = of.work;
    work.splits.clear(), work.begin.assign(1, 0);
    for (int64_t s = 0; s < args.sequences; ++s) {
        const int64_t length = args.lengths[s];
        const int64_t first = length ? of.span(s, 0).begin / SPLIT : 0;
        for (int64_t at = first * SPLIT; at < length; at += SPLIT)
            work.splits.push_back({s, at, std::min<int64_t>(at + SPLIT, length)});
        work.begin.push_back(int64_t(work.splits.size()));
    }
    const int64_t rows = of.rows(), padded = of.padded();
    work.queries.resize(args.sequences * args.kv_heads * padded);
    work.states.assign(work.splits.size() * args.kv_heads * rows, State{});
    work.out.resize(work.splits.size() * args.kv_heads * rows * WIDTH);
}

void set_queries(const Problem& of, int64_t sequence, int64_t h) {
    const AttentionArgs& args = of.args;
    const int64_t rows = of.rows(), padded = of.padded(), group = of.group();
    static constexpr float none[HEAD_DIM] = {};
    const double scale = args.scale * LOG2_E * double(*args.k.scale);
    Query* to = of.work.queries.data() + (sequence * args.kv_heads + h) * padded;
    for (int64_t r = 0; r < padded; ++r) {
        const int64_t i = r / group, head = h * group + r % group;
        to[r].set(r < rows ? args.q + ((sequence * args.queries + i) * args.heads + head) * HEAD_DIM : none, scale);
    }
}

// heads [h, h_end) of one split
void add_split(const Problem& of, int64_t number, int64_t h, int64_t h_end) {
    static thread_local std::unique_ptr<Scratch> scratch(new Scratch);
    const AttentionArgs& args = of.args;
    const Split& split = of.work.splits[number];
    const int64_t rows = of.rows(), padded = of.padded();
    std::vector<Span> spans(rows);
    for (int64_t r = 0; r < rows; ++r) spans[r] = of.span(split.sequence, r / of.group());
    State* states = of.work.states.data() + number * args.kv_heads * rows;
    float* out = of.work.out.data() + number * args.kv_heads * rows * WIDTH;
    std::fill(out + h * rows * WIDTH, out + h_end * rows * WIDTH, 0.0f);
    const bool together = args.head_rows == 1 && h_end - h == args.kv_heads;
    scratch->fit(rows, padded);
    for (int64_t at = std::max(split.first, spans[0].begin / TILE * TILE); at < split.end; at += TILE)
        for (int64_t j = h; j < h_end; ++j) {
            Tile tile;
            tile.first = at;
            tile.tokens = int(std::min<int64_t>(TILE, split.end - at));
            for (int s = 0; s * STEP < tile.tokens; ++s) {
                tile.keys[s] = of.place(args.k, K, split.sequence, at + s * STEP, j);
                tile.values[s] = of.place(args.v, V, split.sequence, at + s * STEP, j);
                of.look_ahead(split, at + AHEAD * TILE, j, s, together, tile);
            }
            const Query* queries = of.work.queries.data() + (split.sequence * args.kv_heads + j) * padded;
            add_tile(tile, queries, spans.data(), rows, states + j * rows, out + j * rows * WIDTH, *scratch);
        }
}

// The states of all splits of one sequence and kv head, to the output.
void finish(const Problem& of, int64_t sequence, int64_t h) {
    const AttentionArgs& args = of.args;
    const int64_t rows = of.rows(), begin = of.work.begin[sequence], end = of.work.begin[sequence + 1];
    for (int64_t r = 0; r < rows; ++r) {
        State state;
        alignas(64) float sums[WIDTH] = {};
        for (int64_t split = begin; split < end; ++split) {
            const int64_t cell = (split * args.kv_heads + h) * rows + r;
            Share share;
            join<1>(&state, &of.work.states[cell], &share);
            add_to(sums, share, of.work.out.data() + cell * WIDTH);
        }
        const int64_t i = r / of.group(), head = h * of.group() + r % of.group();
        float* out = args.out + ((sequence * args.queries + i) * args.heads + head) * HEAD_DIM;
        const float scale = state.sum == 0.0f ? 0.0f : *args.v.scale / state.sum;
        for (int d = 0; d < HEAD_DIM; ++d) out[d] = sums[place_of(d)] * scale;
        args.lse[(sequence * args.heads + head) * args.queries + i] = float((double(state.top) + std::log2(double(state.sum))) * LN_2);
    }
}

}  // namespace

extern "C" void attention_decode(const AttentionArgs* args, ParallelFor run, int64_t threads) {
    static thread_local Work work;
    const Problem of{*args, work};
    prepare(of);
    const int64_t heads = args->kv_heads, pairs = args->sequences * heads;
    parallel(run, pairs, [&](int64_t i) { set_queries(of, i / heads, i % heads); });
    // few splits are shared out by heads; many keep them together, so that memory is read in order
    const int64_t splits = int64_t(work.splits.size());
    const int64_t parts = splits >= 2 * threads ? 1 : heads;
    parallel(run, splits * parts, [&](int64_t task) {
        const int64_t part = task % parts;
        add_split(of, task / parts, heads * part / parts, heads * (part + 1) / parts);
    });
    parallel(run, pairs, [&](int64_t i) { finish(of, i / heads, i % heads); });
}

// 2^x of numbers up to 0, for tests: `count` is a multiple of 16
extern "C" void attention_exp2(const float* x, float* to, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) store_lanes(to + i, exp2_lanes(load_lanes(x + i)));
}
