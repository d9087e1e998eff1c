// Activations of MXINT8, put once per call into the order of activations.h: signed bytes as they are,
// 32 of them under one E8M0 scale, and so two blocks of NVFP4.
#pragma once
#include "activations.h"
#include "micro_portable.h"

namespace int8 {

constexpr int X_BLOCK = 32;
constexpr int POINT = 6;  // bits behind the point of an MXINT8 code
constexpr int UNIT = 127 + POINT;  // the byte under which codes are integers
// weights are doubled, and so are activations of FP4: of these a byte less MORE would stand for the same
constexpr int MORE = POINT - 1;
constexpr int OF_ZEROS = 127 + MORE;  // for blocks of zeros, which are zero under any finite scale
// of bytes under which no product with an E4M3 scale leaves float32's normal numbers
constexpr int LEAST = 24, MOST = 200;

// scale_x * scale_w * sum / 2, with one rounding where it stays in range
inline float careful(int32_t sum, uint8_t x, uint8_t w) {
    if (x == 255 || (!NVFP4 && w == 255)) return std::numeric_limits<float>::quiet_NaN();
    if (NVFP4) return scaled(decode_e4m3(w) * (0.5f * float(sum)), int(x) - UNIT);
    return scaled(float(sum), int(x) + int(w) - UNIT - 128);
}

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
// a scale of x is a power of two: it is added to the exponents of those of the columns
struct Shifted {
    struct Column {
        __m512i bits;
        __mmask16 nonzero;  // a zero has no exponent to add to
        Column() = default;
        Column(const uint8_t* bytes, const uint8_t*) : bits(_mm512_castps_si512(simd::from_e4m3(bytes))) {
            nonzero = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x7FFFFFFF));
        }
    };
    struct Row {
        __m512i bits;
        explicit Row(const uint32_t* factor) : bits(simd::broadcast(factor)) {}
    };
    static simd::Int begin(simd::Int start, const Column&) { return start; }
    static simd::Float finish(simd::Float to, simd::Int sum, const Column& column, const Row& row) {
        const __m512 scale = _mm512_castsi512_ps(_mm512_add_epi32(column.bits, row.bits));
        return _mm512_mask3_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, to, column.nonzero);
    }
};
constexpr bool SHIFTS = NVFP4;
using Fast = std::conditional_t<SHIFTS, Shifted, simd::Scales<Scheme::MAGIC>>;
#else
constexpr bool SHIFTS = false;
#ifndef NO_SIMD
using Fast = simd::Scales<simd::FAST>;
#endif
#endif

// what remains to multiply sums with: EPILOGUE takes both operands for doubled
constexpr float EPILOGUE = !SHIFTS && simd::FAST == Scheme::MULTIPLY ? 2 * simd::EPILOGUE : 1.0f;

// from the byte of a scale to what the fast scheme reads
inline uint32_t factor(int byte) {
    if (SHIFTS) return uint32_t(byte - UNIT + 7) << 23;  // E4M3 reads 2^8 too small, weights are doubled
    if (simd::FAST == Scheme::MAGIC) return (uint32_t(byte - MORE - MAGIC_OFFSET) << 23) | 0x400000u;
    return uint32_t(byte - POINT) << 23;
}

struct Facts {
    int sum;
    bool zero;
};

// one block of codes, copied
inline Facts copy(const uint8_t* codes, uint32_t* to) {
    std::memcpy(to, codes, BLOCK);
    int sum = 0, any = 0;
    for (int i = 0; i < BLOCK; ++i) sum += int8_t(codes[i]), any |= codes[i];
    return {sum, any == 0};
}

// blocks [begin, end) of the tile's rows, the first of which is row `first` of all
inline void arrange_part(const GemmArgs& args, int64_t first, int64_t begin, int64_t end, const Tile& to, Range& range) {
    for (int64_t r = 0; r < to.rows; ++r) {
        const bool there = first + r < args.m;
        const uint8_t *codes = args.x.codes + (first + r) * args.k, *scales = args.x.scales + (first + r) * (args.k / X_BLOCK);
        for (int64_t b = begin; b < end; ++b) {
            const int64_t cell = b * to.rows + r;
            uint32_t* values = to.values + cell * (BLOCK / 4);
            Facts facts{0, true};
            if (there) facts = copy(codes + b * BLOCK, values);
            else std::fill_n(values, BLOCK / 4, 0);  // computed and thrown away
            const int byte = there ? scales[b * BLOCK / X_BLOCK] : OF_ZEROS;
            const bool counts = !facts.zero || byte == 255;
            if (counts) range.add(byte);
            to.start[cell] = -simd::BIAS * facts.sum;
            to.factor[cell] = counts ? byte : OF_ZEROS;
        }
    }
}

inline void give_factors(const Tile& tile, int64_t begin, int64_t end) {
    for (int64_t i = begin * tile.rows; i < end * tile.rows; ++i) {
        tile.factor[i] = factor(int(tile.factor[i]));
        if (simd::FAST == Scheme::MAGIC) tile.start[i] = int32_t(tile.factor[i] + uint32_t(tile.start[i]));
    }
}

// Arranges all rows, then picks the scheme that the scales of both operands allow.
inline void arrange(const GemmArgs& args, ParallelFor run, Activations& to) {
    constexpr int64_t PART = 1 << 15;  // values a task
    to.resize(args);
    const int64_t tiles = to.tiles(), parts = ceil_div(to.height * args.k, PART);
    const auto each_part = [&](auto&& body) {
        parallel(run, tiles * parts, [&](int64_t task) {
            const int64_t t = task / parts, part = task % parts;
            body(task, t, to.blocks * part / parts, to.blocks * (part + 1) / parts);
        });
    };
    std::vector<Range> ranges(tiles * parts);
    each_part([&](int64_t task, int64_t t, int64_t begin, int64_t end) {
        Range own;  // ranges of other tasks share its cache line
        arrange_part(args, t * to.height, begin, end, to.tile(t), own);
        ranges[task] = own;
    });
    Range x;
    for (const Range& range : ranges) x.low = std::min(x.low, range.low), x.high = std::max(x.high, range.high);
    if (x.low > x.high) x = {OF_ZEROS, OF_ZEROS};

    const uint8_t* header = args.w.scales;
    const bool nan = x.high == 255 || header[2];
    const bool fits = NVFP4 ? x.low >= LEAST && x.high <= MOST
                            : in_range(x.low - MORE + header[0], x.high - MORE + header[1]) &&
                                  in_range(127 + header[0], 127 + header[1]) &&
                                  (simd::FAST == Scheme::MAGIC || x.low > POINT);  // else its float is subnormal
    to.scheme = nan || !fits ? Scheme::CAREFUL : simd::FAST;
    if (to.scheme != Scheme::CAREFUL)
        each_part([&](int64_t, int64_t t, int64_t begin, int64_t end) { give_factors(to.tile(t), begin, end); });
}

}  // namespace int8
