// Scalar number formats, written so that compilers vectorize loops over them.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>

inline float from_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline uint32_t to_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

// x * 2^exponent with one rounding, the exponent within 1000: without <cmath>, which takes long to compile
inline float scaled(float x, int exponent) {
    const uint64_t bits = uint64_t(exponent + 1023) << 52;
    double power;
    std::memcpy(&power, &bits, 8);
    return float(double(x) * power);
}

inline float from_bf16(uint16_t x) { return from_bits(uint32_t(x) << 16); }

// round to nearest even; NaN stays NaN
inline uint16_t to_bf16(float x) {
    const uint32_t bits = to_bits(x);
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return uint16_t((bits & 0x7FFFFFFF) > 0x7F800000 ? (bits >> 16) | 0x40 : rounded);
}

inline float decode_e8m0(uint8_t byte) {
    return byte == 255 ? std::numeric_limits<float>::quiet_NaN()
                       : from_bits(byte ? uint32_t(byte) << 23 : 0x00400000u);
}

// the exponent and mantissa of E4M3 sit 4 and 3 bits deep: as bits of a float they read 2^120 low
inline float decode_e4m3(uint8_t byte) {
    const float magnitude = from_bits(uint32_t(byte & 0x7F) << 20) * 0x1p120f;
    const float value = (byte & 0x7F) == 0x7F ? std::numeric_limits<float>::quiet_NaN() : magnitude;
    return byte & 0x80 ? -value : value;
}

// x in [0, 448], to nearest even; NaN gives 0x7F. Adding 2^20 times the power of two below rounds at
// an eighth of that power, which is the step; below 2^-6 it stays.
inline uint8_t encode_e4m3(float x) {
    const uint32_t bits = to_bits(x), exponent = bits & 0x7F800000, least = 121u << 23;
    const uint32_t power = exponent > least ? exponent : least, step = power + (20u << 23);
    const uint32_t code = to_bits(x + from_bits(step)) - step + (power >> 20) - (121u << 3);
    return uint8_t(bits > 0x7F800000 ? 0x7F : code);
}

// to nearest even, saturating at 6; the sign of zero is kept. Below 1 the step is fixed at 0.5, so
// adding 2^22 rounds at that step; from 1 up, rounding the mantissa to one bit does.
inline uint8_t encode_e2m1(float x) {
    const uint32_t sign = to_bits(x) >> 31;
    float y = from_bits(to_bits(x) & 0x7FFFFFFF);
    y = y < 6.0f ? y : 6.0f;
    const uint32_t bits = to_bits(y);
    const uint32_t small = to_bits(y + 0x1p22f) - to_bits(0x1p22f);
    const uint32_t large = ((bits + 0x1FFFFF + ((bits >> 22) & 1)) >> 22) - (126 << 1);
    return uint8_t((y < 1.0f ? small : large) | (sign << 3));
}

// in 64ths: to nearest even, saturating at 127, which is NaN's code too; adding 1.5 * 2^23 rounds at 1
inline uint8_t encode_int8(float x) {
    const float scaled = x * 64.0f;
    const float above = scaled < 127.0f ? scaled : 127.0f, held = above > -127.0f ? above : -127.0f;
    return uint8_t(to_bits(held + 0x1.8p23f));
}
