// Weighted sums by AVX-512: 16 values in the lanes of a vector, four tokens in the bytes of a lane.
//
// The weight of a token times the scale of a block, over the largest such scale of the tile, is the
// integer that multiplies the block's values.
#pragma once
#include "attention_avx512.h"

constexpr int CLASSES = V.block == 16 ? 2 : 1;  // blocks that share a 16-byte lane of a line
constexpr float WEIGHT_MAX = P_BYTES == 3 ? 16777212.0f : P_BYTES == 2 ? 65535.0f : 255.0f;  // rounding cannot reach the next byte
static_assert(P_BYTES >= 1 && P_BYTES <= 3);

// where the sum for value d is held: [chunk][pair of bytes of four][byte][even, odd][lane]
constexpr int place_of(int d) {
    const int byte = d % 128 / 2, lane = byte / 16 * 4 + byte % 4;
    return d / 128 * 128 + (byte % 16 / 4 * 2 + d % 2) * 16 + lane;
}

// [4 times 4 tokens][lane of 16 bytes][token] of [token][PER]: the scales of a class of blocks
constexpr Bytes64 value_order(int of_class) {
    constexpr int per = chunk_scales(V);
    Bytes64 order{};
    for (int i = 0; i < 64; ++i) {
        const int token = i / 16 * 4 + i % 4, block = i % 16 / 4 * CLASSES + of_class;
        order.at[i] = uint8_t(token * per + std::min(block, per - 1));
    }
    return order;
}
inline constexpr Bytes64 VALUE_ORDER[2] = {value_order(0), value_order(CLASSES - 1)};

// byte `digit` of four dwords, for each of the four
constexpr Bytes64 digit_order(int digit) {
    Bytes64 order{};
    for (int i = 0; i < 64; ++i) order.at[i] = uint8_t(i % 4 * 4 + digit);
    return order;
}
inline constexpr Bytes64 DIGIT_ORDER[3] = {digit_order(0), digit_order(1), digit_order(2)};

struct ValueTile {
    alignas(64) int8_t values[CHUNKS][TILE / 4][8][64];
    alignas(64) float scales[CHUNKS][CLASSES][TILE / 4][16];  // up to WEIGHT_MAX
    alignas(64) float factor[CHUNKS][CLASSES][16];            // of the sums
    ScaleBytes<VALUES> bytes;

    // false where the scales are out of range
    bool decode(const Place* places, int tokens, Ahead& ahead) {
        const int steps = (tokens + STEP - 1) / STEP;
        if (!bytes.gather(places, tokens, steps)) return false;
        for (int c = 0; c < CHUNKS; ++c) {
            for (int s = 0; s < steps; ++s)
#pragma GCC unroll 4
                for (int four = 0; four < 4; ++four) {
                    ahead.some(3);
                    decode_four(places[s], four * 4, c, values[c][s * 4 + four]);
                }
            for (int k = 0; k < CLASSES; ++k) set_scales(c, k, steps);
        }
        return true;
    }

    static void decode_four(const Place& from, int token, int chunk, int8_t (*to)[64]) {
        const __m512i table = load_bytes(&VALUE_TABLE);
        const __m512i a = load_line(from, token, chunk), b = load_line(from, token + 1, chunk);
        const __m512i c = load_line(from, token + 2, chunk), d = load_line(from, token + 3, chunk);
        const __m512i ab[2] = {_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b)};
        const __m512i cd[2] = {_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d)};
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) {
            const __m512i four = u % 2 ? _mm512_unpackhi_epi16(ab[u / 2], cd[u / 2]) : _mm512_unpacklo_epi16(ab[u / 2], cd[u / 2]);
            _mm512_store_si512(to[2 * u], _mm512_permutexvar_epi8(four, table));
            _mm512_store_si512(to[2 * u + 1], _mm512_permutexvar_epi8(_mm512_srli_epi16(four, 4), table));
        }
    }

    void set_scales(int c, int k, int steps) {
        const __m512i order = load_bytes(&VALUE_ORDER[k]);
        alignas(64) uint8_t ordered[TILE / STEP][64];
        __m512i most = _mm512_setzero_si512();
        for (int s = 0; s < steps; ++s) {
            const uint8_t* from = bytes.at[c] + s * STEP * bytes.PER;
            const __m512i held = _mm512_permutex2var_epi8(load_bytes(from), order, load_bytes(from + 64));
            _mm512_store_si512(ordered[s], held);
            most = _mm512_max_epu8(most, held);
        }
        // over tokens: over the four times four, then over the bytes of a dword
        most = _mm512_max_epu8(most, _mm512_shuffle_i32x4(most, most, 0x4E));
        most = _mm512_max_epu8(most, _mm512_shuffle_i32x4(most, most, 0xB1));
        most = _mm512_max_epu8(most, _mm512_ror_epi32(most, 8));
        most = _mm512_max_epu8(most, _mm512_ror_epi32(most, 16));
        const __m512 largest = decode_scales<VALUES>(_mm512_castsi512_si128(most));
        const __mmask16 some = _mm512_cmp_ps_mask(largest, _mm512_setzero_ps(), _CMP_GT_OQ);
        const __m512 inverse = _mm512_maskz_div_ps(some, _mm512_set1_ps(1.0f), largest);
        const __m512 limit = _mm512_set1_ps(WEIGHT_MAX);
        for (int s = 0; s < steps; ++s)
#pragma GCC unroll 4
            for (int four = 0; four < 4; ++four) {
                const __m512 scale = decode_scales<VALUES>(load_16(ordered[s] + four * 16));
                _mm512_store_ps(scales[c][k][s * 4 + four], _mm512_mul_ps(_mm512_mul_ps(scale, inverse), limit));
            }
        _mm512_store_ps(factor[c][k], _mm512_mul_ps(largest, _mm512_set1_ps(0.5f * unit(V) / WEIGHT_MAX)));
    }
};

// in place: gcc 12 copies the sums around the intrinsic, and spills them
inline void dot_digits(__m512i& sum, __m512i digits, __m512i values) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(digits), "v"(values));
}

// R rows of out [.][WIDTH] = weights [.][TILE] times the values of `tokens`
template <int R>
inline void integer_sums(const ValueTile& tile, int tokens, const float (*weights)[TILE], float (*out)[WIDTH]) {
    const int fours = (tokens + 3) / 4;
    for (int c = 0; c < CHUNKS; ++c)
        for (int half = 0; half < 2; ++half) {
            const int k = half % CLASSES;
            __m512i sums[R][P_BYTES][4];
#pragma GCC unroll 16
            for (int i = 0; i < R * P_BYTES * 4; ++i) sums[i / (P_BYTES * 4)][i / 4 % P_BYTES][i % 4] = _mm512_setzero_si512();
            for (int t = 0; t < fours; ++t) {
                __m512i digits[R][P_BYTES];
                const __m512 scale = _mm512_load_ps(tile.scales[c][k][t]);
#pragma GCC unroll 2
                for (int r = 0; r < R; ++r) {
                    const __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(weights[r] + 4 * t));
                    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(four, scale));
#pragma GCC unroll 3
                    for (int i = 0; i < P_BYTES; ++i) digits[r][i] = _mm512_shuffle_epi8(whole, load_bytes(&DIGIT_ORDER[i]));
                }
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) {
                    const __m512i values = load_bytes(tile.values[c][t][half * 4 + j]);
#pragma GCC unroll 2
                    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
                        for (int i = 0; i < P_BYTES; ++i) dot_digits(sums[r][i][j], digits[r][i], values);
                }
            }
            const __m512 factor = _mm512_load_ps(tile.factor[c][k]);
#pragma GCC unroll 2
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) {
                    __m512i low = sums[r][0][j];
                    if (P_BYTES > 1) low = _mm512_add_epi32(low, _mm512_slli_epi32(sums[r][P_BYTES > 1][j], 8));
                    __m512 sum = _mm512_cvtepi32_ps(low);
                    if (P_BYTES > 2) sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][P_BYTES - 1][j]), _mm512_set1_ps(65536.0f), sum);
                    _mm512_storeu_ps(out[r] + c * 128 + (half * 4 + j) * 16, _mm512_mul_ps(sum, factor));
                }
        }
}
