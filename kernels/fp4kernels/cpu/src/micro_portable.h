// The inner kernel in plain C++, for any machine: the same layouts, the same exact block sums.
#pragma once
#include "activations.h"

// decodes a block of one panel to [k][16] int16, twice the E2M1 values
inline void decode_block(const uint8_t* lines, int16_t (*to)[16]) {
    static constexpr int16_t twice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    for (int l = 0; l < BLOCK / 8; ++l)
        for (int column = 0; column < 16; ++column)
            for (int j = 0; j < 4; ++j) {
                const uint8_t byte = lines[l * 64 + column * 4 + j];
                to[l * 8 + j][column] = twice[byte & 15];
                to[l * 8 + 4 + j][column] = twice[byte >> 4];
            }
}

// scale_x * scale_w * sum / 4 from the scale bytes, with one rounding where it stays in range
inline float careful(int32_t sum, uint8_t x, uint8_t w) {
    if (NVFP4) return decode_e4m3(x) * decode_e4m3(w) * (0.25f * float(sum));
    if (x == 255 || w == 255) return std::numeric_limits<float>::quiet_NaN();
    return scaled(float(sum), int(x) + int(w) - 256);
}

// as micro() of micro.h; CAREFUL finds the scale bytes in `factor`, MULTIPLY their floats
template <Scheme S, float (*EXACT)(int32_t, uint8_t, uint8_t) = careful>
void micro_portable(const uint8_t* w, int64_t w_stride, const uint8_t* ws, int64_t ws_stride,
                    int64_t last, const Tile& x, int64_t blocks,
                    const uint8_t* header, float* c) {
    for (int64_t b = 0; b < blocks; ++b)
        for (int p = 0; p < PANELS; ++p) {
            const int64_t panel = std::min<int64_t>(p, last);
            int16_t weights[BLOCK][16];
            decode_block(w + panel * w_stride + b * (BLOCK / 8) * 64, weights);
            const uint8_t* bytes = ws + panel * ws_stride + b * 16;
            float columns[16];
            for (int i = 0; i < 16; ++i) {  // out of the header's bounds lie only blocks of zeros
                const uint8_t held = std::min(std::max(bytes[i], header[0]), header[1]);
                columns[i] = decode_scale(NVFP4 ? bytes[i] : held);
            }
            for (int64_t r = 0; r < x.rows; ++r) {
                int32_t sum[16] = {};
                for (int k = 0; k < BLOCK; ++k) {
                    const uint32_t four = x.values[(b * x.rows + r) * (BLOCK / 4) + k / 4];
                    const int32_t value = int8_t(four >> (k % 4 * 8));
                    for (int i = 0; i < 16; ++i) sum[i] += value * weights[k][i];
                }
                float* to = c + (r * PANELS + p) * 16;
                const uint32_t scale = x.factor[b * x.rows + r];
                for (int i = 0; i < 16; ++i)
                    to[i] += S == Scheme::CAREFUL
                                 ? EXACT(sum[i], uint8_t(scale), bytes[i])
                                 : float(sum[i]) * (from_bits(scale) * columns[i]);
            }
        }
}
