// Tiles of AMX in plain C++, by Intel's definition of the instructions that the kernels use: included
// before all else, so that their sources are compiled as they are. What a CPU would fault at aborts.
#pragma once
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace twin {

struct Tile {
    int rows, bytes;
    uint8_t of[16][64];
};

inline thread_local Tile tiles[8];
inline thread_local bool configured = false;

inline void require(bool holds, const char* rule) {
    if (holds) return;
    std::fprintf(stderr, "amx twin: %s\n", rule);
    std::abort();
}

inline Tile& at(int number) {
    require(configured, "no tile is used before ldtilecfg or after tilerelease");
    require(tiles[number].rows > 0, "a tile that is used has a shape");
    return tiles[number];
}

inline void zero(int number) { std::memset(at(number).of, 0, sizeof(Tile::of)); }

inline void load_config(const void* from) {
    uint8_t bytes[64];
    std::memcpy(bytes, from, 64);
    require(bytes[0] == 1 && bytes[1] == 0, "the palette is 1, and the start row 0");
    for (int i = 2; i < 16; ++i) require(bytes[i] == 0, "reserved bytes are 0");
    for (int i = 0; i < 16; ++i) {
        const int width = bytes[16 + 2 * i] | bytes[17 + 2 * i] << 8, rows = bytes[48 + i];
        require(width <= 64 && rows <= 16 && (width > 0) == (rows > 0), "a tile has up to 16 rows of 64 bytes");
        require(i < 8 || rows == 0, "there are eight tiles");
        if (i < 8) tiles[i] = {rows, width, {}};
    }
    configured = true;
}

inline void release() { configured = false; }

inline void load(int number, const void* from, int64_t stride) {
    zero(number);
    Tile& tile = tiles[number];
    for (int r = 0; r < tile.rows; ++r) std::memcpy(tile.of[r], static_cast<const char*>(from) + r * stride, tile.bytes);
}

inline void store(int number, void* to, int64_t stride) {
    const Tile& tile = at(number);
    for (int r = 0; r < tile.rows; ++r) std::memcpy(static_cast<char*>(to) + r * stride, tile.of[r], tile.bytes);
}

inline void require_product(int sums, int a, int b) {
    require(sums != a && sums != b && a != b, "a product has three tiles");
    require(at(sums).rows == at(a).rows && at(sums).bytes == at(b).bytes && at(a).bytes == 4 * at(b).rows, "the shapes of a product fit");
}

inline void multiply_int8(int sums, int a, int b) {
    require_product(sums, a, b);
    for (int m = 0; m < tiles[sums].rows; ++m) {
        int32_t sum[16];
        std::memcpy(sum, tiles[sums].of[m], 64);
        for (int k = 0; k < tiles[a].bytes; ++k)
            for (int n = 0; n < tiles[sums].bytes / 4; ++n)
                sum[n] += int8_t(tiles[a].of[m][k]) * int8_t(tiles[b].of[k / 4][4 * n + k % 4]);
        std::memcpy(tiles[sums].of[m], sum, 64);
    }
}

// subnormal numbers count as zero, in and out
inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

inline float bf16(const uint8_t* at) {
    const uint32_t bits = uint32_t(at[0]) << 16 | uint32_t(at[1]) << 24;
    float x;
    std::memcpy(&x, &bits, 4);
    return flushed(x);
}

inline void multiply_bf16(int sums, int a, int b) {
    require_product(sums, a, b);
    for (int m = 0; m < tiles[sums].rows; ++m) {
        float sum[16], parts[2][16] = {};
        std::memcpy(sum, tiles[sums].of[m], 64);
        for (int k = 0; k < tiles[a].bytes / 4; ++k)
            for (int i = 0; i < 2; ++i) {
                const float x = bf16(tiles[a].of[m] + 4 * k + 2 * i);
                for (int n = 0; n < 16; ++n)
                    parts[i][n] = flushed(std::fma(x, bf16(tiles[b].of[k] + 4 * n + 2 * i), parts[i][n]));
            }
        for (int n = 0; n < 16; ++n) sum[n] = flushed(flushed(sum[n]) + flushed(parts[0][n] + parts[1][n]));
        std::memcpy(tiles[sums].of[m], sum, 64);
    }
}

// the system's permission, which a CPU without tiles is never given
inline long permit(long, long request, long feature) {
    require(request == 0x1023 && feature == 18, "permission is asked for tile data");
    return 0;
}

}  // namespace twin

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#undef _tile_dpbf16ps
#define _tile_loadconfig twin::load_config
#define _tile_release twin::release
#define _tile_loadd twin::load
#define _tile_stored twin::store
#define _tile_zero twin::zero
#define _tile_dpbssd twin::multiply_int8
#define _tile_dpbf16ps twin::multiply_bf16
#define syscall twin::permit
