// Scores by AVX-512: 16 tokens in the lanes of a vector, all query rows over each decoded block.
#pragma once
#include <cmath>

#include "attention_avx512.h"

constexpr int KEY_BLOCKS = row_scales(K), FOURS = K.block / 4;  // dwords of a block

// Q_BYTES signed digits of base 256 reach this far; so that a block's sum fits 32 bits, three of
// them over 32 values reach less
constexpr int32_t QUERY_MAX = Q_BYTES == 3 ? (K.block == 32 ? 5592405 : 8355711) : 32639;
static_assert(Q_BYTES == 2 || Q_BYTES == 3);

// A query as integers times a power of two: bytes as the keys lie, most significant digit first
struct IntegerQuery {
    uint32_t digits[Q_BYTES][HEAD_DIM / 4];
    int32_t start[KEY_BLOCKS];  // -BIAS times the sum over a block
    float factor;               // of the scores

    void set(const float* q, double scale) {
        float most = 0.0f;
        bool finite = true;
        for (int d = 0; d < HEAD_DIM; ++d) {
            most = std::max(most, std::fabs(q[d]));
            finite = finite && std::isfinite(q[d]);
        }
        int exponent = 0;
        const float mantissa = std::frexp(finite ? most : 0.0f, &exponent);
        int shift = 8 * Q_BYTES - 1 - exponent;
        if (std::ldexp(mantissa, 8 * Q_BYTES - 1) > QUERY_MAX) --shift;
        // twice the value of a key, and its scale over unit()
        factor = finite ? float(std::ldexp(scale * 0.5 * unit(K), -shift)) : std::numeric_limits<float>::quiet_NaN();
        std::memset(digits, 0, sizeof digits);
        std::memset(start, 0, sizeof start);
        for (int d = 0; d < HEAD_DIM; ++d) {
            int32_t left = finite ? int32_t(std::lrint(std::ldexp(double(q[d]), shift))) : 0;
            start[d / K.block] -= BIAS * left;
            const int four = d / 8 * 2 + d % 2, byte = d % 8 / 2;
            for (int i = Q_BYTES - 1; i >= 0; --i) {
                const int8_t digit = int8_t(left);
                digits[i][four] |= uint32_t(uint8_t(digit)) << (8 * byte);
                left = (left - digit) >> 8;
            }
        }
    }
};

constexpr Bytes64 key_order(int quarter) {  // [4 blocks][token] of [token][PER]
    constexpr int per = chunk_scales(K);
    Bytes64 order{};
    for (int i = 0; i < 64; ++i) order.at[i] = uint8_t(i % 16 * per + std::min(quarter * 4 + i / 16, per - 1));
    return order;
}
inline constexpr Bytes64 KEY_ORDER[2] = {key_order(0), key_order(1)};

struct KeyTile {
    alignas(64) uint8_t values[TILE / STEP][HEAD_DIM / 8][2][64];
    alignas(64) uint8_t scales[TILE / STEP][CHUNKS][8][16];
    ScaleBytes<KEYS> bytes;

    // false where the scales are out of range
    bool decode(const Place* places, int tokens, Ahead& ahead) {
        const int steps = (tokens + STEP - 1) / STEP;
        if (!bytes.gather(places, tokens, steps)) return false;
        const __m512i table = load_bytes(&KEY_TABLE);
        for (int s = 0; s < steps; ++s)
            for (int c = 0; c < CHUNKS; ++c) {
                ahead.some(8);
                __m512i x[16];
#pragma GCC unroll 16
                for (int t = 0; t < 16; ++t) x[t] = load_line(places[s], t, c);
                transpose(x);
#pragma GCC unroll 16
                for (int i = 0; i < LINE / 4; ++i) {
                    _mm512_store_si512(values[s][c * 16 + i][0], _mm512_permutexvar_epi8(x[i], table));
                    _mm512_store_si512(values[s][c * 16 + i][1], _mm512_permutexvar_epi8(_mm512_srli_epi16(x[i], 4), table));
                }
                const uint8_t* from = bytes.at[c] + s * STEP * bytes.PER;
                const __m512i low = load_bytes(from), high = load_bytes(from + 64);
                for (int half = 0; half < (bytes.PER + 3) / 4; ++half)
                    _mm512_store_si512(scales[s][c][half * 4], _mm512_permutex2var_epi8(low, load_bytes(&KEY_ORDER[half]), high));
            }
        return true;
    }
};

inline void dot_query(__m512i& sum, __m512i keys, const uint32_t& query) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(keys), "m"(query));  // gcc 12 does not fold it
}

// scores [ROWS][TILE] of `tokens` keys; a Query has its `integer`
template <class Query>
inline void integer_scores(const KeyTile& keys, int tokens, const Query* queries, float (*scores)[TILE], Ahead& ahead) {
    for (int s = 0; s * STEP < tokens; ++s) {
        __m512 score[ROWS];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) score[r] = _mm512_setzero_ps();
        for (int b = 0; b < KEY_BLOCKS; ++b) {
            ahead.some(2);
            const uint8_t* from = &keys.values[s][0][0][0] + b * FOURS * 64;
            __m512i block[FOURS];
#pragma GCC unroll 8
            for (int i = 0; i < FOURS; ++i) block[i] = load_bytes(from + i * 64);
            constexpr int PER = chunk_scales(K);
            const __m512 scale = decode_scales<KEYS>(load_16(keys.scales[s][b / PER][b % PER]));
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
                __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 3
                for (int digit = 0; digit < Q_BYTES; ++digit) {
                    if (digit) sum = _mm512_slli_epi32(sum, 8);
#pragma GCC unroll 8
                    for (int i = 0; i < FOURS; ++i) dot_query(sum, block[i], queries[r].integer.digits[digit][b * FOURS + i]);
                }
                sum = _mm512_add_epi32(sum, _mm512_set1_epi32(queries[r].integer.start[b]));
                score[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, score[r]);
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
            _mm512_storeu_ps(scores[r] + s * STEP, _mm512_mul_ps(score[r], _mm512_set1_ps(queries[r].integer.factor)));
    }
}
