// What decode attention is called with, and what is known when it is compiled: -D of
//   HEAD_DIM           64, 96, 128 or 256
//   KEYS, VALUES       formats, numbered as in FORMATS
//   ROWS               query rows that share one pass over a decoded tile of keys
//   TILE, SPLIT        keys whose softmax is taken at once; keys of one task
//   AHEAD              tiles that the cache is fetched ahead; 0 leaves it to the hardware
//   Q_BYTES, P_BYTES   of the integers that queries and weights become over FP4 (AVX-512)
#pragma once
#include "abi.h"
#include "attention_lanes.h"

// pages of codes and block scales, one row for each token and kv head, and the scale of all
struct CacheOperand {
    const uint8_t* codes;
    const uint8_t* scales;
    const float* scale;
};

// Kept in step with attention.py. `token_rows` and `head_rows` lie between two tokens of a page and
// between two heads: that is the order of a page.
struct AttentionArgs {
    const float* q;  // [sequences, queries, heads, HEAD_DIM]
    CacheOperand k, v;
    const int32_t* page_table;  // [sequences, table_pages]
    const int32_t* lengths;
    float* out;  // as q
    float* lse;  // [sequences, heads, queries]
    int64_t sequences, queries, heads, kv_heads, page_size, table_pages, token_rows, head_rows;
    int64_t window;  // keys that a query sees, or 0 for all up to its own
    double scale;
};

struct Format {
    int bits, block;  // no block: no scales
    bool e4m3_scales;  // else E8M0
};
constexpr Format FORMATS[] = {{4, 16, true}, {4, 32, false}, {8, 32, false}, {16, 0, false}};
constexpr Format K = FORMATS[KEYS], V = FORMATS[VALUES];

constexpr int row_bytes(Format f) { return HEAD_DIM * f.bits / 8; }
constexpr int row_scales(Format f) { return f.block ? HEAD_DIM / f.block : 0; }

constexpr int STEP = 16;  // tokens, all on one page: page sizes are multiples
static_assert(TILE % STEP == 0 && SPLIT % TILE == 0 && HEAD_DIM % 32 == 0);

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
#define INTEGERS 1
#else
#define INTEGERS 0
#endif
// floats of a row's sums: whole lines of 128 values where integers are summed
constexpr int WIDTH = INTEGERS && V.bits == 4 ? (HEAD_DIM + 127) / 128 * 128 : HEAD_DIM;

// 16 tokens of one page and kv head; rows lie `*_step` bytes apart
struct Place {
    const uint8_t* codes;
    const uint8_t* scales;
    int64_t codes_step, scales_step;
};

// Asks for codes of tokens [first, first + count) that are needed later. Between other work, a few at a
// time: all at once they would fill the core's miss buffers and hold up what comes after. Inlined: gcc
// takes a function that does nothing else for one without effect, and leaves its calls out.
template <int BYTES>
INLINE inline void fetch_codes(const Place& of, int first, int count) {
    if (!of.codes) return;
#pragma GCC unroll 16
    for (int t = first; t < first + count; ++t)
        for (int i = 0; i < BYTES; i += 64) __builtin_prefetch(of.codes + t * of.codes_step + i, 0, 2);
}
INLINE inline void fetch_scales(const Place& of) {
    if (!of.codes) return;
    for (int64_t i = 0; i < STEP * of.scales_step; i += of.scales_step > 64 ? of.scales_step : 64)
        __builtin_prefetch(of.scales + i, 0, 2);
}
