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

// [4 times 4 tokens][lane of 16 bytes][token] of [token][8]: the scales of a class of blocks
constexpr Bytes64 value_order(int of_class) {
    Bytes64 order{};
    for (int i = 0; i < 64; ++i) order.at[i] = uint8_t((i / 16 * 4 + i % 4) * 8 + i % 16 / 4 * CLASSES + of_class);
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

    // false where the scales are out of range
    bool decode(const Place* places, int tokens, const Place* next) {
        const int steps = (tokens + STEP - 1) / STEP;
        for (int c = 0; c < CHUNKS; ++c) {
            __m512i bytes[CLASSES][TILE / STEP], most[CLASSES] = {};
            for (int s = 0; s < steps; ++s) {
                const ScaleRows<VALUES> rows(places[s], c, std::min(STEP, tokens - s * STEP));
                if (!rows.plain()) return false;
                for (int k = 0; k < CLASSES; ++k) {
                    bytes[k][s] = rows.ordered(VALUE_ORDER[k]);
                    most[k] = _mm512_max_epu8(most[k], bytes[k][s]);
                }
            }
            for (int k = 0; k < CLASSES; ++k) set_scales(bytes[k], most[k], steps, scales[c][k], factor[c][k]);
            for (int s = 0; s < steps; ++s)
#pragma GCC unroll 4
                for (int four = 0; four < 4; ++four) {
                    if (c == 0) fetch_codes<row_bytes(V)>(next[s], four * 4, 4);
                    decode_four(places[s], four * 4, c, values[c][s * 4 + four]);
                }
        }
        for (int s = 0; s < steps; ++s) fetch_scales(next[s]);
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

    // `most` of each byte; [4 tokens][lane of 16 bytes][token] to floats up to WEIGHT_MAX
    static void set_scales(const __m512i* bytes, __m512i most, int steps, float (*to)[16], float* factor) {
        // over tokens: over the four times four, then over the bytes of a dword
        most = _mm512_max_epu8(most, _mm512_shuffle_i32x4(most, most, 0x4E));
        most = _mm512_max_epu8(most, _mm512_shuffle_i32x4(most, most, 0xB1));
        most = _mm512_max_epu8(most, _mm512_ror_epi32(most, 8));
        most = _mm512_max_epu8(most, _mm512_ror_epi32(most, 16));
        const __m512 largest = decode_scales<VALUES>(_mm512_castsi512_si128(most));
        const __mmask16 some = _mm512_cmp_ps_mask(largest, _mm512_setzero_ps(), _CMP_GT_OQ);
        const __m512 share = _mm512_maskz_div_ps(some, _mm512_set1_ps(WEIGHT_MAX), largest);
        for (int s = 0; s < steps; ++s) {
            _mm512_store_ps(to[s * 4], _mm512_mul_ps(decode_scales<VALUES>(_mm512_castsi512_si128(bytes[s])), share));
            _mm512_store_ps(to[s * 4 + 1], _mm512_mul_ps(decode_scales<VALUES>(_mm512_extracti32x4_epi32(bytes[s], 1)), share));
            _mm512_store_ps(to[s * 4 + 2], _mm512_mul_ps(decode_scales<VALUES>(_mm512_extracti32x4_epi32(bytes[s], 2)), share));
            _mm512_store_ps(to[s * 4 + 3], _mm512_mul_ps(decode_scales<VALUES>(_mm512_extracti32x4_epi32(bytes[s], 3)), share));
        }
        _mm512_store_ps(factor, _mm512_mul_ps(largest, _mm512_set1_ps(0.5f * unit(V) / WEIGHT_MAX)));
    }
};

// R rows of out [.][WIDTH], by their old share, += weights [.][TILE] times the values of `tokens`, by
// their fresh share
template <int R>
__attribute__((noinline)) void integer_sums(const ValueTile& tile, int tokens, const float* weights, const Share* shares, float* out) {
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
                    const __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(weights + r * TILE + 4 * t));
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
                        for (int i = 0; i < P_BYTES; ++i) dot(sums[r][i][j], digits[r][i], values);
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
                    float* to = out + r * WIDTH + c * 128 + (half * 4 + j) * 16;
                    const __m512 old = _mm512_mul_ps(_mm512_loadu_ps(to), _mm512_set1_ps(shares[r].old));
                    _mm512_storeu_ps(to, _mm512_fmadd_ps(sum, _mm512_mul_ps(factor, _mm512_set1_ps(shares[r].fresh)), old));
                }
        }
}
