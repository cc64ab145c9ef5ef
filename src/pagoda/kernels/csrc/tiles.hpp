// The tile registers of AMX, for *_tiles.cpp.
//
// Eight registers of up to 16 rows of 64 bytes. A product adds A times B to C, row by row of A:
//
//   C [rows][16 x 32 bits] += A [rows][inputs, 64 bytes] x B [16 x 4 bytes of inputs][16 columns x 32 bits]
//
// so a line of B is sixteen columns of four bytes (four int8, or a pair of bfloat16): what a line of a panel is (packed.hpp).
// A product of bfloat16 sums the even inputs of a tile in one float, the odd ones in another, and adds their sum to C; denormal numbers are zeros.
//
// Measured on a Xeon with AMX at 3.5 GHz: a product of zeros every 4.5 ns, whatever the number of rows of A (1 to 16): 7.3 TOP/s in int8,
// 3.6 TFLOP/s in bfloat16 (of real numbers, at which the clock falls, every 5 to 6); a tile from the first cache costs 8 cycles beside it,
// from the second 16 to 30. Shapes and release: 50 ns.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace pagoda {
namespace {

constexpr int kTileRows = 16, kTileBytes = 64;
constexpr int64_t kTileTokens = 2 * kTileRows;  // of a pass of a product: two tiles

// Rows and bytes of a row of each register.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  constexpr void set(int tile, int height, int width = kTileBytes) {
    rows[tile] = static_cast<uint8_t>(height), bytes[tile] = static_cast<uint16_t>(width);
  }
};

// g++ 12's tile loads do not say that they read memory (stores do say that they write): to be called between writing and loading.
inline void tile_fence() { __asm__ volatile("" ::: "memory"); }

// While it lives, the registers of this thread have these shapes; they begin with zeros. Released afterwards, since a thread whose tiles are in
// use is dearer to switch.
class TileScope {
 public:
  explicit TileScope(const TileShapes& shapes) { reshape(shapes); }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

  void reshape(const TileShapes& shapes) const {  // zeros again
    tile_fence();
    _tile_loadconfig(&shapes);
  }
};

}  // namespace
}  // namespace pagoda
