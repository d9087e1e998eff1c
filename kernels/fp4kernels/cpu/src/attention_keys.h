// Scores by AVX-512: 16 tokens in the lanes of a vector, all query rows over each decoded block.
#pragma once
#include <cmath>

#include "attention_avx512.h"

constexpr int KEY_BLOCKS = row_scales(K), FOURS = K.block / 4;  // dwords of a block

// Q_BYTES signed digits of base 256 reach this far; so that a block's sum fits 32 bits, three of
// them over 32 values reach less
constexpr int32_t QUERY_MAX = Q_BYTES == 3 ? (K.block == 32 ? 5592405 : 8355711) : Q_BYTES == 2 ? 32639 : 127;
static_assert(Q_BYTES >= 1 && Q_BYTES <= 3);

// A query as integers times a power of two, or, of one byte, times its largest value over QUERY_MAX: bytes
// as the keys lie, most significant digit first
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
        const double multiplier = finite ? to_integers(most) : 1.0;
        // twice the value of a key, and its scale over unit()
        factor = finite ? float(scale * 0.5 * unit(K) / multiplier) : std::numeric_limits<float>::quiet_NaN();
        std::memset(digits, 0, sizeof digits);
        std::memset(start, 0, sizeof start);
        for (int d = 0; d < HEAD_DIM; ++d) {
            int32_t left = finite ? int32_t(std::lrint(double(q[d]) * multiplier)) : 0;
            start[d / K.block] -= BIAS * left;
            const int four = d / 8 * 2 + d % 2, byte = d % 8 / 2;
            for (int i = Q_BYTES - 1; i >= 0; --i) {
                const int8_t digit = int8_t(left);
                digits[i][four] |= uint32_t(uint8_t(digit)) << (8 * byte);
                left = (left - digit) >> 8;
            }
        }
    }

    static double to_integers(float most) {
        if (most == 0.0f) return 1.0;
        if (Q_BYTES == 1) return QUERY_MAX / double(most);
        int exponent = 0;
        const float mantissa = std::frexp(most, &exponent);
        int shift = 8 * Q_BYTES - 1 - exponent;
        if (std::ldexp(mantissa, 8 * Q_BYTES - 1) > QUERY_MAX) --shift;
        return std::ldexp(1.0, shift);
    }
};

constexpr Bytes64 key_order(int quarter) {  // [4 blocks][token] of [token][8]
    Bytes64 order{};
    for (int i = 0; i < 64; ++i) order.at[i] = uint8_t(i % 16 * 8 + quarter * 4 + i / 16);
    return order;
}
inline constexpr Bytes64 KEY_ORDER[2] = {key_order(0), key_order(1)};

// 16 keys, decoded
struct KeyStep {
    alignas(64) uint8_t values[HEAD_DIM / 8][2][64];
    alignas(64) uint8_t scales[CHUNKS][8][16];

    // false where the scales are out of range
    bool decode(const Place& from, int tokens, const Place& next) {
        for (int c = 0; c < CHUNKS; ++c) {
            const ScaleRows<KEYS> rows(from, c, tokens);
            if (!rows.plain()) return false;
            for (int half = 0; half < (chunk_scales(K) + 3) / 4; ++half)
                _mm512_store_si512(scales[c][half * 4], rows.ordered(KEY_ORDER[half]));
        }
        constexpr int PIECES = HEAD_DIM / 32;
        const __m512i table = load_bytes(&KEY_TABLE);
        fetch_scales(next);
        for (int piece = 0; piece < PIECES; ++piece) {
            __m512i x[4];
            columns(from, piece, x);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                _mm512_store_si512(values[piece * 4 + i][0], _mm512_permutexvar_epi8(x[i], table));
                _mm512_store_si512(values[piece * 4 + i][1], _mm512_permutexvar_epi8(_mm512_srli_epi16(x[i], 4), table));
            }
        }
        return true;
    }
};

// rows, and steps, whose sums there are registers for: they share loads of keys, and of queries
constexpr int PASS = Q_BYTES <= 2 && ROWS % 4 == 0 ? 4 : ROWS % 2 == 0 ? 2 : 1;
constexpr int TOGETHER = TILE / STEP > 1 ? 2 : 1;

// scores [PASS], TILE apart, of TOGETHER times 16 keys; a Query has its `integer`
template <class Query>
inline void pass_scores(const KeyStep* keys, const Query* queries, float* scores, const Place* next) {
    constexpr int PER = chunk_scales(K), CELLS = PASS * TOGETHER;
    __m512 score[CELLS];
    each<CELLS>([&](auto i) INLINE { score[i] = _mm512_setzero_ps(); });
    for (int b = 0; b < KEY_BLOCKS; ++b) {
        for (int s = 0; s < TOGETHER; ++s) fetch_codes<row_bytes(K)>(next[s], b * STEP / KEY_BLOCKS, STEP / KEY_BLOCKS);
        __m512i sums[CELLS][Q_BYTES];
        each<CELLS * Q_BYTES>([&](auto i) INLINE {
            constexpr int cell = i / Q_BYTES, digit = i % Q_BYTES;
            sums[cell][digit] = digit + 1 < Q_BYTES ? _mm512_setzero_si512() : _mm512_set1_epi32(queries[cell / TOGETHER].integer.start[b]);
        });
        each<FOURS>([&](auto i) INLINE {
            __m512i values[TOGETHER];
            each<TOGETHER>([&](auto s) INLINE { values[s] = load_bytes(keys[s].values[0][0] + (b * FOURS + i) * 64); });
            each<PASS * Q_BYTES>([&](auto j) INLINE {
                constexpr int r = j / Q_BYTES, digit = j % Q_BYTES;
                const __m512i four = _mm512_set1_epi32(int32_t(queries[r].integer.digits[digit][b * FOURS + i]));
                each<TOGETHER>([&](auto s) INLINE { dot(sums[r * TOGETHER + s][digit], values[s], four); });
            });
        });
        __m512 scales[TOGETHER];
        each<TOGETHER>([&](auto s) INLINE { scales[s] = decode_scales<KEYS>(load_16(keys[s].scales[b / PER][b % PER])); });
        each<CELLS>([&](auto i) INLINE {
            __m512i sum = sums[i][0];
            each<Q_BYTES - 1>([&](auto digit) INLINE { sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8), sums[i][digit + 1]); });
            score[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scales[i % TOGETHER], score[i]);
        });
    }
    each<CELLS>([&](auto i) INLINE {
        constexpr int r = i / TOGETHER, s = i % TOGETHER;
        _mm512_storeu_ps(scores + r * TILE + s * STEP, _mm512_mul_ps(score[i], _mm512_set1_ps(queries[r].integer.factor)));
    });
}

// scores [ROWS], TILE apart
template <class Query>
inline void integer_scores(const KeyStep* keys, const Query* queries, float* scores, const Place* next) {
    static constexpr Place none[TOGETHER] = {};  // the first pass fetches for all
    for (int r = 0; r < ROWS; r += PASS) pass_scores(keys, queries + r, scores + r * TILE, r ? none : next);
}
