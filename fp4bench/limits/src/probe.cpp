// Drives one part of the CPU at a time as hard as it goes, on the threads that run the kernels.
#include "units.h"

#include "abi.h"
#if defined(__AMX_INT8__)
#include "tiles.h"
#endif

namespace {

// `v` may have changed, for all that the compiler knows: what follows is not hoisted or merged
template <class V>
inline __attribute__((always_inline)) void opaque(V& v) {
#if defined(__x86_64__)
    asm volatile("" : "+v"(v));
#elif defined(__aarch64__)
    asm volatile("" : "+w"(v));
#else
    asm volatile("" : "+m"(v));
#endif
}

constexpr int64_t WIDE = sizeof(Bits);
constexpr int64_t STEP = 8 * WIDE;  // one step reads into eight sums

template <bool PASSING>
void read(const char* from, int64_t size, int64_t ahead) {
    Bits sums[8] = {};
    for (const char* end = from + size; from < end; from += STEP) {
        if (PASSING)  // fetched past the last-level cache, so that nothing is thrown out of it
            for (int i = 0; i < STEP; i += 64) __builtin_prefetch(from + ahead + i, 0, 0);
        for (int i = 0; i < 8; ++i) sums[i] = sums[i] ^ load(from + i * WIDE);
    }
    for (Bits& sum : sums) opaque(sum);
}

template <bool PASSING>
void copy(char* to, const char* from, int64_t size) {
    for (const char* end = from + size; from < end; from += STEP, to += STEP)
        for (int i = 0; i < 8; ++i) {
            const Bits value = load(from + i * WIDE);
            PASSING ? stream(to + i * WIDE, value) : store(to + i * WIDE, value);
        }
#if defined(__x86_64__)
    if (PASSING) _mm_sfence();
#endif
}

constexpr int64_t UNROLLED = 8;

// `steps` times `one` on each of the sums, which do not depend on each other
template <class V, class Step>
inline __attribute__((always_inline)) void chains(V sum, int64_t steps, Step one) {
    V sums[CHAINS];
    for (V& each : sums) each = sum;
    for (int64_t s = 0; s < steps; s += UNROLLED)
#pragma GCC unroll 8
        for (int u = 0; u < UNROLLED; ++u)
#pragma GCC unroll 16
            for (V& each : sums) one(each);
    for (V& each : sums) opaque(each);
}

void fp32(int64_t steps) {
    Floats half = floats(0.5f), one = floats(1.0f);
    opaque(half), opaque(one);
    chains(one, steps, [&](Floats& sum) { sum = multiply_add(sum, half, one); });
}

#if defined(__AVX2__) || defined(__AVX512VNNI__)
constexpr int64_t INT8_STEP = 2 * CHAINS * sizeof(Ints);

void int8(int64_t steps) {
    Ints a = bytes(3), b = bytes(-5);
    chains(Ints{}, steps, [&](Ints& sum) {
        opaque(a);
        sum = dot(sum, a, b);
    });
}
#else
constexpr int64_t DEPTH = 256, ROWS = 4;
constexpr int64_t INT8_STEP = 2 * DEPTH * ROWS;

// as the portable kernel multiplies: int8 values that are held in 16 bits, summed in 32
void int8(int64_t steps) {
    int16_t x[ROWS][DEPTH], w[DEPTH];
    for (int k = 0; k < DEPTH; ++k) {
        w[k] = int16_t(k - DEPTH / 2);
        for (auto& row : x) row[k] = w[k];
    }
    for (int64_t s = 0; s < steps; ++s) {
        asm volatile("" : : "r"(x), "r"(w) : "memory");
        int32_t sums[ROWS] = {};
        for (int k = 0; k < DEPTH; ++k)
            for (int r = 0; r < ROWS; ++r) sums[r] += int32_t(x[r][k]) * w[k];
        asm volatile("" : : "r"(sums) : "memory");
    }
}
#endif

#if defined(__AMX_INT8__)
constexpr int64_t TILE_STEP = 2 * tiles::ROWS * 16 * tiles::ROW_BYTES;  // of int8; half of them of bf16

// one product of full tiles, of zeros, a step: in turn into four sums
template <bool INT8>
void products(int64_t steps) {
    tiles::Shapes shapes;
    for (int tile = 0; tile < 6; ++tile) shapes.set(tile, tiles::ROWS, tiles::ROW_BYTES);
    const tiles::Configured configured(shapes);
    for (int64_t s = 0; s < steps; s += 4) {
        if (INT8) {
            _tile_dpbssd(0, 4, 5); _tile_dpbssd(1, 4, 5); _tile_dpbssd(2, 4, 5); _tile_dpbssd(3, 4, 5);
        } else {
            _tile_dpbf16ps(0, 4, 5); _tile_dpbf16ps(1, 4, 5); _tile_dpbf16ps(2, 4, 5); _tile_dpbf16ps(3, 4, 5);
        }
    }
}
#elif defined(__AVX512VNNI__)
void bf16(int64_t steps) {
    Ints one = _mm512_set1_epi16(0x3f80);
    opaque(one);
    // assembly, since the kernels' flags leave AVX512_BF16 out; the caller has asked for it
    chains(floats(0.0f), steps, [&](Floats& sum) {
        asm("vdpbf16ps %1, %1, %0" : "+v"(sum) : "v"(one));
    });
}
#endif

}  // namespace

// Each of `tasks` reads its own `size` bytes, a multiple of STEP, `rounds` times. With `ahead`,
// every line is fetched so many bytes before it is read, by the hint that it is read only once.
extern "C" void probe_read(ParallelFor run, int64_t tasks, const char* from, int64_t size, int64_t rounds, int64_t ahead) {
    parallel(run, tasks, [&](int64_t task) {
        for (int64_t r = 0; r < rounds; ++r)
            ahead ? read<true>(from + task * size, size, ahead) : read<false>(from + task * size, size, 0);
    });
}

// As probe_read; `passing` writes past the caches.
extern "C" void probe_copy(ParallelFor run, int64_t tasks, char* to, const char* from, int64_t size, int64_t rounds, int64_t passing) {
    parallel(run, tasks, [&](int64_t task) {
        for (int64_t r = 0; r < rounds; ++r)
            passing ? copy<true>(to + task * size, from + task * size, size)
                    : copy<false>(to + task * size, from + task * size, size);
    });
}

enum Unit : int64_t { FP32, INT8, BF16 };

// `steps`, a multiple of UNROLLED, of one unit on each thread. Returns the operations done, a
// multiply-add being two, or 0 where there is no such unit.
extern "C" double probe_unit(ParallelFor run, int64_t threads, int64_t unit, int64_t steps) {
    void (*work)(int64_t) = unit == FP32 ? fp32 : int8;
    double operations = unit == FP32 ? 2 * CHAINS * sizeof(Floats) / 4 : INT8_STEP;
#if defined(__AMX_INT8__)
    if (unit == INT8) work = products<true>, operations = TILE_STEP;
    if (unit == BF16) work = products<false>, operations = TILE_STEP / 2;
#else
    if (unit == BF16) {
#if defined(__AVX512VNNI__)
        if (!__builtin_cpu_supports("avx512bf16")) return 0;
        work = bf16;
        operations = 2 * CHAINS * sizeof(Floats) / 2;
#else
        return 0;
#endif
    }
#endif
    parallel(run, threads, [&](int64_t) { work(steps); });
    return operations * double(steps) * double(threads);
}
