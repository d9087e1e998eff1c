// Activations, decoded once per call into the order in which the micro-kernels read them.
//
//   values   [tile][block][rows][BLOCK]   int8: twice the E2M1 values of one row, read by fours
//   start    [tile][block][rows]          int32, where a row's accumulator starts
//   factor   [tile][block][rows]          32 bits, what turns it into float (see Scheme)
//
// Rows are shared out evenly to tiles of at most MR, each filled up to a multiple of RG.
#pragma once
#include <vector>

#include "loops.h"

// How a block's integer sum S becomes scale_x * scale_w * S / 4 in float.
enum class Scheme {
    MAGIC,     // MXFP4: the sum is built on top of the bits of 1.5 * 2^(23+e); no multiplication
    LOOKUP,    // NVFP4: products of mantissas come from a table; `factor` is a scale's byte
    MULTIPLY,  // both scales are floats
    CAREFUL,   // NaN scales, or exponents out of range: slow and exact; `factor` is a scale's byte
};

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "simd_neon.h"
#else
#define NO_SIMD
namespace simd {
constexpr int BIAS = 0;
constexpr Scheme FAST = Scheme::MULTIPLY;
constexpr float EPILOGUE = 0.25f;  // both operands are twice their values
}  // namespace simd
#endif
#include "expand.h"

// the byte of scale 1: for blocks of zeros, which are zero under any finite scale
constexpr int UNIT_SCALE = NVFP4 ? 0x38 : 127;

struct Tile {
    uint32_t* values;
    int32_t* start;
    uint32_t* factor;
    int64_t rows;  // a multiple of RG

    Tile from(int64_t block) const {
        const int64_t cell = block * rows;
        return {values + cell * (BLOCK / 4), start + cell, factor + cell, rows};
    }
};

struct Activations {
    std::vector<uint32_t> values;
    std::vector<int32_t> start;
    std::vector<uint32_t> factor;
    Scheme scheme = Scheme::CAREFUL;
    int64_t m, blocks, height;  // rows of all, blocks of a row, rows of a tile

    int64_t tiles() const { return ceil_div(m, height); }

    void resize(const GemmArgs& args) {
        m = args.m, blocks = args.k / BLOCK;
        height = tile_height(m);
        values.resize(tiles() * height * (args.k / 4) + SPARE_ROWS * (BLOCK / 4));
        start.resize(tiles() * height * blocks);
        factor.resize(tiles() * height * blocks);
    }

    Tile tile(int64_t index) {
        const int64_t first = index * height, cell = first * blocks;
        const int64_t rows = ceil_div(std::min(height, m - first), RG) * RG;
        return {values.data() + cell * (BLOCK / 4), start.data() + cell, factor.data() + cell, rows};
    }
};

// 1.5 * 2^(23+e) has float exponent e + 150; with e = x + w - 256 that is x + w - 106
constexpr int MAGIC_OFFSET = 106;

// of sums of two E8M0 bytes; the product of two floats must stay clear of the subnormals
inline bool in_range(int low, int high) {
    return low > (simd::FAST == Scheme::MAGIC ? MAGIC_OFFSET : 140) && high - MAGIC_OFFSET < 255;
}

// The scale bytes of the nonzero blocks of rows [begin, end): smallest and largest.
struct Range {
    int low = 255, high = 0;
    void add(int byte) { low = std::min(low, byte), high = std::max(high, byte); }
};

inline void unpack_block(const uint8_t* codes, uint8_t scale, const Tile& to, int64_t cell, Range& range) {
    uint32_t* values = to.values + cell * (BLOCK / 4);
    // the sign of an E4M3 scale is given to the values
    const uint8_t magnitude = NVFP4 ? scale & 0x7F : scale;
    BlockFacts facts = expand(codes, scale == magnitude ? 0 : 0x88, values);
    const bool nan = magnitude == (NVFP4 ? 0x7F : 255);
    if (NVFP4 && magnitude == 0) {
        std::fill_n(values, BLOCK / 4, 0);
        facts = {0, true};
    }
    const bool counts = nan || !facts.zero;
    if (counts) range.add(nan ? 255 : magnitude);
    to.start[cell] = -simd::BIAS * facts.sum;
    to.factor[cell] = counts ? magnitude : UNIT_SCALE;
}

// blocks [begin, end) of the tile's rows, the first of which is row `first` of all
inline void unpack_part(const GemmArgs& args, int64_t first, int64_t begin, int64_t end, const Tile& to, Range& range) {
    for (int64_t b0 = begin; b0 < end; b0 += IN_LINE)
        for (int64_t r = 0; r < to.rows; ++r) {
            const int64_t cell = b0 * to.rows + r, at = (first + r) * (args.k / BLOCK) + b0;
            const int64_t count = std::min(IN_LINE, end - b0);
            const uint8_t *codes = args.x.codes + at * (BLOCK / 2), *scales = args.x.scales + at;
            if (first + r >= args.m) {  // a row of zeros: computed and thrown away
                for (int64_t i = 0; i < count; ++i) {
                    std::fill_n(to.values + (cell + i * to.rows) * (BLOCK / 4), BLOCK / 4, 0);
                    to.start[cell + i * to.rows] = 0, to.factor[cell + i * to.rows] = UNIT_SCALE;
                }
                continue;
            }
            int32_t sums[IN_LINE];
            if (count == IN_LINE && expand_line(codes, scales, to.values + cell * (BLOCK / 4), to.rows * (BLOCK / 4), sums)) {
                for (int i = 0; i < IN_LINE; ++i) {
                    range.add(scales[i]);
                    to.start[cell + i * to.rows] = -simd::BIAS * sums[i];
                    to.factor[cell + i * to.rows] = scales[i];
                }
            } else {
                for (int i = 0; i < count; ++i)
                    unpack_block(codes + i * (BLOCK / 2), scales[i], to, cell + i * to.rows, range);
            }
        }
}

// from the bytes of the scales to what the fast scheme reads
inline void finish_part(const Tile& tile, int64_t begin, int64_t end) {
    for (int64_t i = begin * tile.rows; i < end * tile.rows; ++i) {
        if (simd::FAST == Scheme::MAGIC) {
            tile.factor[i] = ((tile.factor[i] - MAGIC_OFFSET) << 23) | 0x400000u;
            tile.start[i] = int32_t(tile.factor[i] + uint32_t(tile.start[i]));
        } else if (simd::FAST == Scheme::MULTIPLY) {
            tile.factor[i] = to_bits(decode_scale(uint8_t(tile.factor[i])));
        }
    }
}

// Decodes all rows, then picks the scheme that the scales of both operands allow.
inline void unpack(const GemmArgs& args, ParallelFor run, Activations& to) {
    constexpr int64_t PART = 1 << 15;  // values a task
    to.resize(args);
    const int64_t tiles = to.tiles(), blocks = to.blocks, parts = ceil_div(to.height * args.k, PART);
    const auto each_part = [&](auto&& body) {
        parallel(run, tiles * parts, [&](int64_t task) {
            const int64_t t = task / parts, part = task % parts;
            body(task, t, blocks * part / parts, blocks * (part + 1) / parts);
        });
    };
    std::vector<Range> ranges(tiles * parts);
    each_part([&](int64_t task, int64_t t, int64_t begin, int64_t end) {
        Range own;  // ranges of other tasks share its cache line
        unpack_part(args, t * to.height, begin, end, to.tile(t), own);
        ranges[task] = own;
    });
    Range x;
    for (const Range& range : ranges) x.low = std::min(x.low, range.low), x.high = std::max(x.high, range.high);
    if (x.low > x.high) x = {UNIT_SCALE, UNIT_SCALE};

    const uint8_t* header = args.w.scales;
    const bool nan = x.high == 255 || header[2];
    const bool fits = NVFP4 || (in_range(x.low + header[0], x.high + header[1]) &&
                                in_range(127 + header[0], 127 + header[1]));
    to.scheme = nan || !fits ? Scheme::CAREFUL : simd::FAST;
    if (to.scheme != Scheme::CAREFUL)
        each_part([&](int64_t, int64_t t, int64_t begin, int64_t end) {
            finish_part(to.tile(t), begin, end);
        });
}
