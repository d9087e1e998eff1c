// Vectors of 16 floats on any machine: the compiler splits them where registers are shorter.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define INLINE __attribute__((always_inline))

typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t LaneBits __attribute__((vector_size(64)));
constexpr int LANES = 16;
constexpr float NEVER = -std::numeric_limits<float>::infinity();

inline Lanes load_lanes(const float* from) {
    Lanes x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
inline void store_lanes(float* to, Lanes x) { std::memcpy(to, &x, sizeof x); }
inline Lanes all_lanes(float x) { return x - Lanes{}; }

inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    return a * b + c;
#endif
}

inline float sum_of(Lanes x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    float y[LANES];
    store_lanes(y, x);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) y[i] += y[i + width];
    return y[0];
#endif
}

// 2^x for x below 127, within 2^-23 of it, relatively; 0 below 2^-125; NaN stays. The polynomial is off
// by 2^-28.9, the rest is rounding.
inline Lanes exp2_lanes(Lanes x) {
    const Lanes least = all_lanes(-125.0f);
    const LaneBits gone = x < least;
    const Lanes near = gone ? least : x;
    const Lanes magic = all_lanes(0x1.8p23f);
    const Lanes shifted = near + magic;  // rounds to a whole number, in the low bits
    const Lanes r = near - (shifted - magic);
    Lanes y = multiply_add(r, all_lanes(0x1.41fbbcp-13f), all_lanes(0x1.5f3e54p-10f));
    y = multiply_add(y, r, all_lanes(0x1.3b2d4cp-7f));
    y = multiply_add(y, r, all_lanes(0x1.c6aee8p-5f));
    y = multiply_add(y, r, all_lanes(0x1.ebfbdcp-3f));
    y = multiply_add(y, r, all_lanes(0x1.62e430p-1f));
    y = multiply_add(y, r, all_lanes(1.0f));
    const LaneBits power = ((LaneBits)shifted - (LaneBits)magic + 127) << 23;
    const Lanes held = y * (Lanes)power;
    return gone ? Lanes{} : held;
}

// of 16 lanes; a NaN among them may be lost here, but not in the sum of the weights
inline float most_of(Lanes x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float y[LANES];
    store_lanes(y, x);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) y[i] = y[i] > y[i + width] ? y[i] : y[i + width];
    return y[0];
#endif
}
