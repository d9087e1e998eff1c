// FP4 attention of whole sequences; -D of HEAD_DIM (64, 96, 128 or 256) and NVFP4 (blocks of 16 under
// E4M3 scales, else of 32 under E8M0).
//
// Keys and values are decoded once, to float32, which holds them exactly; every block of queries goes
// over them tile by tile with an online softmax, and rounds P to FP4 as it is made.
#include <algorithm>
#include <cmath>
#include <vector>

#include "abi.h"
#include "attention_rounding.h"

struct PackedRows {
    const uint8_t* codes;
    const uint8_t* scales;
    const float* scale;  // of all
};

// Kept in step with attention_prefill.py. Places are tokens padded to whole tiles of TILE.
struct PrefillArgs {
    PackedRows q;          // [heads, q_places, PADDED]
    PackedRows k;          // [kv_heads, k_places, PADDED]
    PackedRows v;          // [kv_heads, PADDED, k_places]
    const float* bias;     // [heads, q_places / TILE, longest_k], or null
    const float* shift;    // [heads, q_places], or null
    const int32_t* table;  // [sequences][queries, keys, first token, first place of q, of k]
    float* out;            // [tokens, heads, HEAD_DIM]; untouched where a sequence has no keys
    float* lse;            // [heads, tokens]; so is this
    int64_t sequences, heads, kv_heads, tokens, q_places, k_places, longest_k;
    int64_t causal, window, reverse, round_scale;
    double scale, p_scale;
};

namespace {

constexpr int TILE = 128, ROWS = 64;                  // keys of a tile, queries of a task
constexpr int PADDED = HEAD_DIM == 96 ? 128 : HEAD_DIM;  // columns as they are held
constexpr double LOG2_E = 1.4426950408889634;

#if defined(__AVX512F__)
constexpr int MR = 4, WIDE = HEAD_DIM % 64 ? 2 : 4;  // rows and vectors of columns summed in registers
#else
constexpr int MR = 4, WIDE = 1;
#endif

struct Sequence {
    int64_t queries, keys, token, q_place, k_place;
};

struct Task {
    Sequence of;
    int64_t head, first;  // query
};

// What a row of `count` values is, without the scale of all.
inline void decode_values(const PackedRows& from, int64_t value, int count, float* to) {
    const uint8_t* codes = from.codes + value / 2;
    for (int i = 0; i < count; ++i) {
        const int code = codes[i / 2] >> (i % 2 * 4), size = code & 7;  // twice 0, .5, 1, 1.5, 2, 3, 4, 6
        const int twice = size + (size > 4 ? size - 4 : 0) + (size == 7 ? 2 : 0);
        to[i] = 0.5f * float(code & 8 ? -twice : twice);
    }
    const uint8_t* scales = from.scales + value / BLOCK;
    for (int b = 0; b < count / BLOCK; ++b) {
        const float scale = decode_scale(scales[b]);
        for (int i = 0; i < BLOCK; ++i) to[b * BLOCK + i] *= scale;
    }
}

// to [columns][rows] of `rows` rows, `step` values apart; both are multiples of 16
inline void decode_turned(const PackedRows& from, int64_t value, int64_t step, int rows, int columns, float* to) {
    alignas(64) float held[16][std::max(TILE, HEAD_DIM)];
    for (int first = 0; first < rows; first += 16) {
        for (int r = 0; r < 16; ++r) decode_values(from, value + (first + r) * step, columns, held[r]);
        for (int c = 0; c < columns; ++c)
            for (int r = 0; r < 16; ++r) to[c * rows + first + r] = held[r][c];
    }
}

// c [MR][..] = or += a [MR][depth] times b [depth][..], for `V` vectors of columns
template <int V, bool ADD>
inline void multiply(const float* a, int64_t a_step, const float* b, int64_t b_step, int depth, float* c, int64_t c_step) {
    Lanes sums[MR][V];
#pragma GCC unroll 16
    for (int i = 0; i < MR * V; ++i) sums[i / V][i % V] = ADD ? load_lanes(c + i / V * c_step + i % V * LANES) : Lanes{};
    for (int k = 0; k < depth; ++k) {
        Lanes columns[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) columns[v] = load_lanes(b + k * b_step + v * LANES);
#pragma GCC unroll 4
        for (int r = 0; r < MR; ++r) {
            const Lanes one = all_lanes(a[r * a_step + k]);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sums[r][v] = multiply_add(one, columns[v], sums[r][v]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR * V; ++i) store_lanes(c + i / V * c_step + i % V * LANES, sums[i / V][i % V]);
}

struct Scratch {
    alignas(64) float q[ROWS][HEAD_DIM], p[ROWS][TILE], out[ROWS][HEAD_DIM];
    float top[ROWS], total[ROWS];
};

struct Prefill {
    const PrefillArgs& args;
    std::vector<float>& keys;    // [kv_heads][k_places / TILE][HEAD_DIM][TILE]
    std::vector<float>& values;  // [kv_heads][k_places / TILE][TILE][HEAD_DIM]

    void decode_tile(int64_t number) const {
        const int64_t tiles = args.k_places / TILE, head = number / tiles, place = number % tiles * TILE;
        const int64_t to = number * TILE * HEAD_DIM;
        decode_turned(args.k, (head * args.k_places + place) * PADDED, PADDED, TILE, HEAD_DIM, keys.data() + to);
        decode_turned(args.v, head * PADDED * args.k_places + place, args.k_places, HEAD_DIM, TILE, values.data() + to);
    }

    int64_t end(const Sequence& of, int64_t query) const { return args.causal ? of.keys - of.queries + query + 1 : of.keys; }
    int64_t begin(const Sequence& of, int64_t query) const { return args.window ? std::max<int64_t>(0, end(of, query) - args.window) : 0; }

    // Scores of one row to P as it is rounded; what its sums so far are to be scaled by.
    float weigh(float* row, const float* bias, int64_t first, int64_t last, float& top, float& total) const {
        const float times = *args.q.scale * *args.k.scale, factor = float(args.scale * LOG2_E);
        Lanes most = all_lanes(NEVER);
        for (int i = 0; i < TILE; i += LANES) {
            Lanes x = load_lanes(row + i) * times;
            if (bias) x += load_lanes(bias + i);
            store_lanes(row + i, x * factor);
        }
        for (int64_t i = 0; i < std::min<int64_t>(first, TILE); ++i) row[i] = NEVER;
        for (int64_t i = std::max<int64_t>(last, 0); i < TILE; ++i) row[i] = NEVER;
        for (int i = 0; i < TILE; i += LANES) {
            const Lanes x = load_lanes(row + i);
            most = most > x ? most : x;
        }
        const float before = top;
        top = std::max(top, most_of(most));
        const float finite = top == NEVER ? 0.0f : top;  // of a row that has seen nothing
        const float keep = before == top ? 1.0f : exp2_lanes(all_lanes(before - finite))[0];
        const Lanes shift = all_lanes(finite - float(std::log2(args.p_scale)));
        Lanes sum = {};
        for (int i = 0; i < TILE; i += LANES) {
            const Lanes p = exp2_lanes(load_lanes(row + i) - shift);
            sum += p;
            store_lanes(row + i, p);
        }
        total = total * keep + sum_of(sum);
        round_row<TILE>(row, args.round_scale);
        return keep;
    }

    void add_tile(const Task& task, int64_t rows, int64_t at, Scratch& s) const {
        const Sequence& of = task.of;
        const int64_t number = task.head / (args.heads / args.kv_heads) * (args.k_places / TILE) + (of.k_place + at) / TILE;
        const float* k = keys.data() + number * TILE * HEAD_DIM;
        const float* v = values.data() + number * TILE * HEAD_DIM;
        for (int64_t r = 0; r < rows; r += MR)
            for (int n = 0; n < TILE; n += WIDE * LANES)
                multiply<WIDE, false>(s.q[r], HEAD_DIM, k + n, TILE, HEAD_DIM, s.p[r] + n, TILE);
        const float* bias = nullptr;
        if (args.bias) bias = args.bias + (task.head * (args.q_places / TILE) + (of.q_place + task.first) / TILE) * args.longest_k + at;
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t query = task.first + r;
            const float keep = weigh(s.p[r], bias, begin(of, query) - at, end(of, query) - at, s.top[r], s.total[r]);
            if (keep == 1.0f) continue;
            for (int d = 0; d < HEAD_DIM; d += LANES) store_lanes(s.out[r] + d, load_lanes(s.out[r] + d) * keep);
        }
        for (int64_t r = 0; r < rows; r += MR)
            for (int n = 0; n < HEAD_DIM; n += WIDE * LANES)
                multiply<WIDE, true>(s.p[r], TILE, v + n, HEAD_DIM, TILE, s.out[r] + n, HEAD_DIM);
    }

    void attend(const Task& task) const {
        static thread_local Scratch s;
        const Sequence& of = task.of;
        const int64_t rows = std::min<int64_t>(ROWS, of.queries - task.first);
        std::memset(&s, 0, sizeof s);
        std::fill(s.top, s.top + ROWS, NEVER);
        const int64_t place = task.head * args.q_places + of.q_place + task.first;
        for (int64_t r = 0; r < rows; ++r) decode_values(args.q, (place + r) * PADDED, HEAD_DIM, s.q[r]);
        const int64_t from = begin(of, task.first) / TILE, to = (end(of, task.first + rows - 1) + TILE - 1) / TILE;
        for (int64_t i = 0; i < to - from; ++i) add_tile(task, rows, (args.reverse ? to - 1 - i : from + i) * TILE, s);
        for (int64_t r = 0; r < rows; ++r) finish(task, r, args.shift ? args.shift[place + r] : 0.0f, s);
    }

    void finish(const Task& task, int64_t r, float shift, const Scratch& s) const {
        const int64_t token = task.of.token + task.first + r;
        const float scale = s.total[r] > 0 ? *args.v.scale / s.total[r] : 0.0f;
        float* out = args.out + (token * args.heads + task.head) * HEAD_DIM;
        for (int d = 0; d < HEAD_DIM; ++d) out[d] = s.out[r][d] * scale;
        const double lse = (double(s.top[r]) + std::log2(double(s.total[r])) - std::log2(args.p_scale)) / LOG2_E;
        args.lse[task.head * args.tokens + token] = s.total[r] > 0 ? float(lse) + shift : NEVER;
    }
};

}  // namespace

extern "C" void attention_prefill(const PrefillArgs* args, ParallelFor run) {
    static thread_local std::vector<float> keys, values;
    const Prefill of{*args, keys, values};
    const int64_t tiles = args->kv_heads * args->k_places / TILE;
    keys.resize(tiles * TILE * HEAD_DIM), values.resize(keys.size());
    parallel(run, tiles, [&](int64_t i) { of.decode_tile(i); });
    std::vector<Task> tasks;
    for (int64_t i = 0; i < args->sequences; ++i) {
        const int32_t* x = args->table + i * 5;
        const Sequence one{x[0], x[1], x[2], x[3], x[4]};
        if (!one.keys) continue;
        for (int64_t head = 0; head < args->heads; ++head)
            for (int64_t first = 0; first < one.queries; first += ROWS) tasks.push_back({one, head, first});
    }
    parallel(run, int64_t(tasks.size()), [&](int64_t i) { of.attend(tasks[i]); });
}
