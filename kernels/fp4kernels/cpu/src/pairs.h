// Activations in bf16, put once per call into the order in which weights are decoded.
//
//   values  [tile][chunk][rows][PAIRS]   dwords: pairs of bf16 of one row, k-values 0 and 2 of eight,
//                                        then 4 and 6, 1 and 3, 5 and 7; past K zeros
//
// Rows are shared out to tiles as in activations.h.
#pragma once
#include <vector>

#include "loops.h"

#if defined(__AMX_BF16__)
constexpr int CHUNK = 32;  // k-values that are decoded at once: they fill a row of a tile
#else
constexpr int CHUNK = 16;
#endif
constexpr int PAIRS = CHUNK / 2;
constexpr int64_t SEGMENT = 1024;  // values of K that are summed on their own

struct Pairs {
    std::vector<uint32_t> values;
    std::vector<uint8_t> tiny;  // a tile's: whether vdpbf16ps could flush a value or a sum to zero
    int64_t m, chunks, height;

    int64_t rows(int64_t tile) const { return ceil_div(std::min(height, m - tile * height), RG) * RG; }
    const uint32_t* tile(int64_t index, int64_t chunk) const {
        return values.data() + (index * height * chunks + chunk * rows(index)) * PAIRS;
    }
};

// The least magnitude, as bf16 bits, with which nothing is flushed: a product is a multiple of the
// last places of both factors, and so is any sum; 2^-126 must divide them. 0x8000 where there is none.
inline int least_normal(const uint8_t* header) {
    if (NVFP4) return 18 << 7;  // weights are multiples of 2^-10
    // and decoding adds to exponents
    const bool fits = header[0] >= 2 && header[1] <= 252 && !header[2];
    return fits ? std::max(1, 136 - header[0]) << 7 : 0x8000;
}

using Eight = uint16_t __attribute__((vector_size(16)));

// chunks [begin, end) of a tile's rows; true where one holds a nonzero value below `least`
inline bool pair_part(const GemmArgs& args, int64_t first, int64_t rows, int64_t begin, int64_t end, int least, uint32_t* to) {
    const auto* x = reinterpret_cast<const uint16_t*>(args.x.codes);
    const uint16_t magnitude = 0x7FFF, most = uint16_t(least - 2);
    Eight tiny = {};
    for (int64_t chunk = begin; chunk < end; ++chunk)
        for (int64_t r = 0; r < rows; ++r)
            for (int part = 0; part < CHUNK / 8; ++part) {
                const int64_t k = chunk * CHUNK + part * 8;
                const bool within = CHUNK == 16 || k < args.k;  // K is a multiple of 16
                Eight eight = {};  // past the last row: computed and thrown away
                if (first + r < args.m && within) std::memcpy(&eight, x + (first + r) * args.k + k, sizeof eight);
                // less one, zero is the largest
                tiny |= Eight((eight & magnitude) - 1 <= Eight{} + most);
                const Eight ordered = __builtin_shufflevector(eight, eight, 0, 2, 4, 6, 1, 3, 5, 7);
                std::memcpy(to + (chunk * rows + r) * PAIRS + part * 4, &ordered, sizeof ordered);
            }
    int any = 0;
    for (int i = 0; i < 8; ++i) any |= tiny[i];
    return any != 0;
}

inline void pair_up(const GemmArgs& args, ParallelFor run, Pairs& to) {
    constexpr int64_t PART = 1 << 15;  // values a task
    to.m = args.m, to.chunks = ceil_div(args.k, CHUNK), to.height = tile_height(args.m);
    const int64_t tiles = ceil_div(to.m, to.height), parts = ceil_div(to.height * args.k, PART);
    const int64_t size = to.height * to.chunks * PAIRS;  // of a tile
    to.values.resize(tiles * size + SPARE_ROWS * PAIRS);
    std::vector<uint8_t> tiny(tiles * parts);
    const int least = least_normal(args.w.scales);
    parallel(run, tiles * parts, [&](int64_t task) {
        const int64_t t = task / parts, part = task % parts;
        uint32_t* values = to.values.data() + t * size;
        tiny[task] = pair_part(args, t * to.height, to.rows(t), to.chunks * part / parts,
                               to.chunks * (part + 1) / parts, least, values);
    });
    to.tiny.assign(tiles, 0);
    for (int64_t task = 0; task < tiles * parts; ++task) to.tiny[task / parts] |= tiny[task];
}
