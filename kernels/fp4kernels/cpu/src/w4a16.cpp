// W4A16 GEMM: bf16 activations, weights decoded with their scales folded in, which is exact.
// Compiled once per configuration, with the -D of gemm.cpp.
#include "floats.h"
#include "pairs.h"
#if defined(__AMX_BF16__)
#include "w4a16_amx.h"
#endif

namespace {

constexpr int STRIPS = WIDTH / simd::LANES;  // vectors side by side
constexpr int SPLIT = 16 / simd::LANES;      // of them, in a panel

#if !defined(__AMX_BF16__)
// c [rows][WIDTH] += `tile` times PANELS panels from `panel`, over blocks [begin, end). A chunk of
// weights is decoded once for all rows, RG at a time. With ONE the tile has RG rows.
template <class Dot, bool ONE>
void add_tile(const Panels& of, const Pairs& x, int64_t tile, int64_t panel, int64_t begin, int64_t end, float* c) {
    using namespace simd;
    const int64_t rows = ONE ? RG : x.rows(tile);
    const uint32_t* values = x.tile(tile, begin * (BLOCK / CHUNK));
    Float held[ONE ? STRIPS : 1][RG];
    if (ONE)
        UNROLL for (int q = 0; q < STRIPS; ++q)
            UNROLL for (int r = 0; r < RG; ++r) held[q][r] = load(c + (r * STRIPS + q) * LANES);
    for (int64_t b = begin; b < end; ++b) {
        const uint8_t* codes[STRIPS];
        typename Dot::Scale scale[STRIPS];
        UNROLL for (int q = 0; q < STRIPS; ++q) {
            const int64_t from = panel + std::min<int64_t>(q / SPLIT, of.last(panel));
            codes[q] = of.codes(from, b) + q % SPLIT * LANES * 4;
            scale[q] = Dot::scale(of.scales(from, b) + q % SPLIT * LANES);
            if (PREFETCH && q % SPLIT == 0) {
                UNROLL for (int l = 0; l < BLOCK / 8; ++l) __builtin_prefetch(codes[q] + l * 64 + PREFETCH);
                __builtin_prefetch(of.scales(from, b) + PREFETCH / (BLOCK / 8 * 64) * 16);
            }
        }
        for (int chunk = 0; chunk < BLOCK / CHUNK; ++chunk) {
            const auto decode = [&](int q, int p) { return Dot::decode(codes[q] + (chunk * 2 + p / 4) * 64, p % 4, scale[q]); };
            typename Dot::Weights decoded[ONE ? 1 : STRIPS][PAIRS];
            if (!ONE)
                UNROLL for (int q = 0; q < STRIPS; ++q)
                    UNROLL for (int p = 0; p < PAIRS; ++p) decoded[q][p] = decode(q, p);
            for (int64_t r0 = 0; r0 < rows; r0 += RG, values += RG * PAIRS) {
                Float sum[STRIPS][RG];
                UNROLL for (int r = 0; r < RG; ++r)
                    UNROLL for (int q = 0; q < STRIPS; ++q)
                        sum[q][r] = ONE ? held[q][r] : load(c + ((r0 + r) * STRIPS + q) * LANES);
                UNROLL for (int p = 0; p < PAIRS; ++p) {
                    typename Dot::Weights weights[STRIPS];
                    UNROLL for (int q = 0; q < STRIPS; ++q) weights[q] = ONE ? decode(q, p) : decoded[q][p];
                    UNROLL for (int r = 0; r < RG; ++r)
                        UNROLL for (int q = 0; q < STRIPS; ++q)
                            sum[q][r] = Dot::add(sum[q][r], weights[q], values + r * PAIRS + p);
                }
                UNROLL for (int r = 0; r < RG; ++r)
                    UNROLL for (int q = 0; q < STRIPS; ++q)
                        if (ONE) held[q][r] = sum[q][r];
                        else store(c + ((r0 + r) * STRIPS + q) * LANES, sum[q][r]);
            }
        }
    }
    if (ONE)
        UNROLL for (int q = 0; q < STRIPS; ++q)
            UNROLL for (int r = 0; r < RG; ++r) store(c + (r * STRIPS + q) * LANES, held[q][r]);
}

#endif

// The same, each segment summed on its own: roundings of one sum along all of K would add up. Where
// K begins, c holds zeros.
template <class Dot, bool ONE>
void add_segments(const Panels& of, const Pairs& x, int64_t tile, int64_t panel, int64_t begin, int64_t end, float* c) {
    alignas(64) thread_local float sums[MR * WIDTH];
    const int64_t count = x.rows(tile) * WIDTH;
    for (int64_t b = begin; b < end; b += SEGMENT / BLOCK) {
        const int64_t until = std::min(end, b + SEGMENT / BLOCK);
        if (b == 0) {
            add_tile<Dot, ONE>(of, x, tile, panel, b, until, c);
            continue;
        }
        std::fill_n(sums, count, 0.0f);
        add_tile<Dot, ONE>(of, x, tile, panel, b, until, sums);
        for (int64_t i = 0; i < count; i += simd::LANES) simd::store(c + i, simd::load(c + i) + simd::load(sums + i));
    }
}

}  // namespace

extern "C" void gemm(const GemmArgs* args, ParallelFor run, int64_t threads) {
    thread_local Pairs held;
    Pairs& x = held;  // the pool's threads would see their own
    pair_up(*args, run, x);
    const Panels w{args->w, args->n, args->k};
    const bool narrow = simd::Narrow::runs();
    multiply(*args, run, threads, 1.0f, [&](int64_t tile, int64_t panel, int64_t begin, int64_t end, float* c) {
        if (narrow && !x.tiny[tile]) add_segments<simd::Narrow, MR == RG>(w, x, tile, panel, begin, end, c);
        else add_segments<simd::Wide, MR == RG>(w, x, tile, panel, begin, end, c);
    });
}
