// Activations, decoded once per call into the order in which the micro-kernels read them.
//
//   values   [tile][block][MR][BLOCK]   int8: twice the E2M1 values of one row, read by fours
//   start    [tile][block][MR]          int32, where a row's accumulator starts
//   factor   [tile][block][MR]          32 bits, what turns it into float (see Scheme)
//
// The weights decode to unsigned bytes 12 too large, so `start` holds -12 times the block's sum.
#pragma once
#include <algorithm>
#include <vector>

#include "abi.h"
#include "numbers.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

constexpr int BLOCK = NVFP4 ? 16 : 32;
constexpr int BIAS = 12;

// How a block's integer sum S becomes scale_x * scale_w * S / 4 in float.
enum class Scheme {
    MAGIC,  // MXFP4: the sum is built on top of the bits of 1.5 * 2^(23+e); no multiplication
    MULTIPLY,  // both scales are floats
    CAREFUL,  // NaN scales, or exponents out of range: slow and exact
};

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
constexpr bool VNNI = true;
#else
constexpr bool VNNI = false;
#endif
constexpr Scheme FAST = VNNI && !NVFP4 ? Scheme::MAGIC : Scheme::MULTIPLY;

// the byte of scale 1: for blocks of zeros, which are zero under any finite scale
constexpr int UNIT_SCALE = NVFP4 ? 0x38 : 127;

inline float decode_scale(uint8_t byte) { return NVFP4 ? decode_e4m3(byte) : decode_e8m0(byte); }

struct Activations {
    std::vector<uint32_t> values;
    std::vector<int32_t> start;
    std::vector<uint32_t> factor;
    Scheme scheme = Scheme::CAREFUL;
};

struct ByteTable {
    uint16_t pair[256];  // two int8, the low nibble's first
    int8_t sum[256];
    constexpr ByteTable() : pair(), sum() {
        constexpr int twice[8] = {0, 1, 2, 3, 4, 6, 8, 12};
        for (int byte = 0; byte < 256; ++byte) {
            const int low = byte & 8 ? -twice[byte & 7] : twice[byte & 7];
            const int high = byte & 128 ? -twice[(byte >> 4) & 7] : twice[(byte >> 4) & 7];
            pair[byte] = uint16_t((low & 255) | ((high & 255) << 8));
            sum[byte] = int8_t(low + high);
        }
    }
};
inline constexpr ByteTable TABLE;

struct BlockFacts {
    int sum;    // of the values written
    bool zero;  // all of them
};

// one block of codes to int8
#if defined(__AVX2__)
inline BlockFacts expand(const uint8_t* codes, uint32_t* to) {
    const __m128i table = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    const __m128i nibble = _mm_set1_epi8(15), one = _mm_set1_epi8(1);
    const auto* from = reinterpret_cast<const __m128i*>(codes);
    const __m128i bytes = BLOCK == 32 ? _mm_loadu_si128(from) : _mm_loadl_epi64(from);
    const __m128i even = _mm_shuffle_epi8(table, _mm_and_si128(bytes, nibble));
    const __m128i odd = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble));
    auto* out = reinterpret_cast<__m128i*>(to);
    _mm_storeu_si128(out, _mm_unpacklo_epi8(even, odd));
    if (BLOCK == 32) _mm_storeu_si128(out + 1, _mm_unpackhi_epi8(even, odd));
    // sums of two, of four, of eight; bytes past a short block decode to zero
    const __m128i pairs = _mm_maddubs_epi16(one, _mm_add_epi8(even, odd));
    const __m128i fours = _mm_madd_epi16(pairs, _mm_set1_epi16(1));
    const __m128i eights = _mm_add_epi32(fours, _mm_unpackhi_epi64(fours, fours));
    const int sum = _mm_cvtsi128_si32(eights) + _mm_extract_epi32(eights, 1);
    return {sum, _mm_testz_si128(bytes, _mm_set1_epi8(0x77)) != 0};
}
#else
inline BlockFacts expand(const uint8_t* codes, uint32_t* to) {
    int sum = 0, any = 0;
    for (int i = 0; i < BLOCK / 2; i += 2) {
        to[i / 2] = TABLE.pair[codes[i]] | uint32_t(TABLE.pair[codes[i + 1]]) << 16;
        sum += TABLE.sum[codes[i]] + TABLE.sum[codes[i + 1]];
        any |= codes[i] | codes[i + 1];
    }
    return {sum, (any & 0x77) == 0};
}
#endif

// 1.5 * 2^(23+e) has float exponent e + 150; with e = x + w - 256 that is x + w - 106
constexpr int MAGIC_OFFSET = 106;

// of sums of two E8M0 bytes; the product of two floats must stay clear of the subnormals
inline bool in_range(int low, int high) {
    return low > (FAST == Scheme::MAGIC ? MAGIC_OFFSET : 140) && high - MAGIC_OFFSET < 255;
}

// The scale bytes of the nonzero blocks of rows [begin, end): smallest and largest.
struct Range {
    int low = 255, high = 0;
    void add(int byte) { low = std::min(low, byte), high = std::max(high, byte); }
};

inline void unpack_tile(const GemmArgs& args, int64_t tile, Activations& to, Range& range) {
    const int64_t k = args.k, blocks = k / BLOCK;
    uint32_t* values = to.values.data() + tile * (k / 4) * MR;
    int32_t* start = to.start.data() + tile * blocks * MR;
    uint32_t* factor = to.factor.data() + tile * blocks * MR;
    for (int r = 0; r < MR; ++r) {
        const int64_t row = tile * MR + r;
        const uint8_t* codes = args.x.codes + row * k / 2;
        const uint8_t* scales = args.x.scales + row * blocks;
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t cell = b * MR + r;
            if (row >= args.m) {  // a row of zeros: computed and thrown away
                std::fill_n(values + cell * (BLOCK / 4), BLOCK / 4, 0);
                start[cell] = 0, factor[cell] = UNIT_SCALE;
                continue;
            }
            const BlockFacts facts = expand(codes + b * BLOCK / 2, values + cell * (BLOCK / 4));
            const bool nan = NVFP4 ? (scales[b] & 0x7F) == 0x7F : scales[b] == 255;
            if (!facts.zero || nan) range.add(nan ? 255 : scales[b]);
            start[cell] = -BIAS * facts.sum;
            factor[cell] = facts.zero && !nan ? UNIT_SCALE : scales[b];
        }
    }
}

// Decodes all rows, then picks the scheme that the scales of both operands allow.
inline void unpack(const GemmArgs& args, ParallelFor run, Activations& to) {
    const int64_t tiles = (args.m + MR - 1) / MR, blocks = args.k / BLOCK;
    to.values.resize(tiles * args.k / 4 * MR);
    to.start.resize(tiles * blocks * MR);
    to.factor.resize(tiles * blocks * MR);
    std::vector<Range> ranges(tiles);
    const int64_t per_task = std::max<int64_t>(1, (1 << 15) / (args.k * MR));
    const int64_t tasks = (tiles + per_task - 1) / per_task;
    const auto each_tile = [&](auto&& body) {
        parallel(run, tasks, [&](int64_t task) {
            const int64_t end = std::min(tiles, (task + 1) * per_task);
            for (int64_t tile = task * per_task; tile < end; ++tile) body(tile);
        });
    };
    each_tile([&](int64_t tile) { unpack_tile(args, tile, to, ranges[tile]); });
    Range x;
    for (const Range& range : ranges) x.low = std::min(x.low, range.low), x.high = std::max(x.high, range.high);
    if (x.low > x.high) x = {UNIT_SCALE, UNIT_SCALE};

    const uint8_t* header = args.w.scales;
    const bool nan = x.high == 255 || header[2];
    const bool fits = NVFP4 || (in_range(x.low + header[0], x.high + header[1]) &&
                                in_range(127 + header[0], 127 + header[1]));
    to.scheme = nan || !fits ? Scheme::CAREFUL : FAST;
    if (to.scheme == Scheme::CAREFUL) return;  // wants the bytes
    const int64_t cells = tiles * blocks * MR;
    for (int64_t i = 0; i < cells; ++i) {
        if (FAST == Scheme::MAGIC) {
            to.factor[i] = ((to.factor[i] - MAGIC_OFFSET) << 23) | 0x400000u;
            to.start[i] = int32_t(to.factor[i] + uint32_t(to.start[i]));
        } else {
            to.factor[i] = to_bits(decode_scale(uint8_t(to.factor[i])));
        }
    }
}
