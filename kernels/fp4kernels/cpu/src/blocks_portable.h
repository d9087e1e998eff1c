// Blocks of values in plain C++: their largest magnitudes, and their codes.
#pragma once

namespace {

inline float value(Float32 x) { return x.value; }
inline float value(Bfloat16 x) { return from_bf16(x.bits); }

// of `count` blocks; the others of the group are 0. The bits of |x| order as integers do, NaN above all.
template <class T>
void largest(const T* x, int64_t count, float* amax) {
    for (int b = 0; b < GROUP; ++b) {
        uint32_t most = 0;
        for (int i = 0; b < count && i < BLOCK; ++i) most = std::max(most, to_bits(value(x[b * BLOCK + i])) & 0x7FFFFFFF);
        amax[b] = from_bits(most);
    }
}

#if BITS == 8
template <class T>
void encode(const T* x, int64_t count, const float* multiplier, uint8_t* codes, bool) {
    for (int64_t i = 0; i < count * BLOCK; ++i) codes[i] = encode_int8(value(x[i]) * multiplier[i / BLOCK]);
}
#else
template <class T>
void encode(const T* x, int64_t count, const float* multiplier, uint8_t* codes, bool) {
    for (int64_t b = 0; b < count; ++b) {
        uint8_t code[BLOCK];
        for (int i = 0; i < BLOCK; ++i) code[i] = encode_e2m1(value(x[b * BLOCK + i]) * multiplier[b]);
        for (int i = 0; i < BLOCK / 2; ++i) codes[b * (BLOCK / 2) + i] = code[2 * i] | (code[2 * i + 1] << 4);
    }
}
#endif

}  // namespace
