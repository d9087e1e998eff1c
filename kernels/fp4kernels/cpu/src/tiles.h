// Tiles of AMX: eight registers of up to 16 rows of 64 bytes. One product adds rows of activations times
// 16 columns of weights; a line of panel16, decoded, is a row of the second operand as it is.
//
// Proven on a twin of these instructions; no machine that has them timed it.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace tiles {

constexpr int ROWS = 16;
constexpr int ROW_BYTES = 64;

// Of the fewest tiles, all of one height, that hold so many rows. The last may reach past the rows, by
// less than there are tiles.
inline int64_t height_for(int64_t rows) {
    const int64_t count = (rows + ROWS - 1) / ROWS;
    return (rows + count - 1) / count;
}

// Compilers do not know that tiles are loaded from memory: what was stored before has to be there.
inline void stored(const void* at) { asm volatile("" : : "r"(at) : "memory"); }

// Heights and widths of the registers, as ldtilecfg reads them.
struct alignas(64) Shapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int64_t height, int width) {
        rows[tile] = uint8_t(height);
        bytes[tile] = uint16_t(width);
    }
};
static_assert(sizeof(Shapes) == 64);

// Registers of these shapes for as long as it lives. Set anew by each call of an inner kernel: other
// libraries have shapes of their own on the same thread.
struct Configured {
    explicit Configured(const Shapes& shapes) {
        stored(&shapes);
        _tile_loadconfig(&shapes);
    }
    Configured(const Configured&) = delete;
    ~Configured() { _tile_release(); }
};

}  // namespace tiles
