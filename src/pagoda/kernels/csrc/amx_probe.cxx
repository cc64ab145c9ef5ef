// What CMakeLists.txt compiles to see whether compiler and assembler know AMX. No part of the extension.
#include <immintrin.h>

void probe(const void* a, const void* b, void* sums) {
  _tile_zero(0);
  _tile_loadd(1, a, 64);
  _tile_loadd(2, b, 64);
  _tile_dpbf16ps(0, 1, 2);
  _tile_dpbssd(0, 1, 2);
  _tile_stored(0, sums, 64);
  _tile_release();
}
