// Products of sixteen rows of words (pairs of bfloat16) by AMX.
#pragma once

#include <cstdint>

namespace pagoda {
namespace {

// g++ 12's intrinsics take no tile that is a template's argument, and do not say that they read memory.
template <int kTile>
inline void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

template <int kTile>
inline void load_tile(const float* at, int64_t words) {  // from one row to the next
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(at), "r"(4 * words), "i"(kTile) : "memory");
}

template <int kTile>
inline void store_tile(float* at, int64_t words) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(at), "r"(4 * words), "i"(kTile) : "memory");
}

template <int kTo, int kA, int kB>
inline void add_pairs() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kTo), "i"(kA), "i"(kB));
}

// Two tiles of sums, or one (kTwo false). Stores follow the first products of the next ones: there are few registers behind the names of
// tiles, so that what waits for a sum holds up all that comes (16 rows x 128 slots x 64 columns: 103 ns so, 150 with each sum
// stored after its last product).
template <int kFirst, bool kTwo>
struct TilePair {
  float* at = nullptr;

  static void begin(const float* from, int64_t ldc, bool add) {
    if (add) {
      load_tile<kFirst>(from, ldc);
      if (kTwo) load_tile<kFirst + 1>(from + 16, ldc);
    } else {
      zero_tile<kFirst>();
      if (kTwo) zero_tile<kFirst + 1>();
    }
  }
  static void step(const float* a, int64_t lda, const float* b, int64_t ldb) {
    load_tile<4>(a, lda);
    load_tile<5>(b, ldb);
    add_pairs<kFirst, 4, 5>();
    if (!kTwo) return;
    load_tile<6>(b + 16, ldb);
    add_pairs<kFirst + 1, 4, 6>();
  }
  static void end(float* to, int64_t ldc) {
    store_tile<kFirst>(to, ldc);
    if (kTwo) store_tile<kFirst + 1>(to + 16, ldc);
  }
};

// c[16][columns] (+)= a[16][words] * b[words][columns]; words and columns multiples of 16. Calls beside() behind each two products.
template <typename Beside>
inline void tile_product(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t words, int64_t columns, float* c, int64_t ldc,
                         bool add, Beside beside) {
  using Even = TilePair<0, true>;
  using Odd = TilePair<2, true>;
  const int64_t step = 16 * ldb, pairs = columns / 32;
  for (int64_t p = 0; p < pairs; ++p, b += 32, c += 32) {
    if (p % 2 == 0) {
      Even::begin(c, ldc, add);
      Even::step(a, lda, b, ldb);
      if (p) Odd::end(c - 32, ldc);
      for (int64_t w = 16; w < words; w += 16) beside(), Even::step(a + w, lda, b + w / 16 * step, ldb);
    } else {
      Odd::begin(c, ldc, add);
      Odd::step(a, lda, b, ldb);
      Even::end(c - 32, ldc);
      for (int64_t w = 16; w < words; w += 16) beside(), Odd::step(a + w, lda, b + w / 16 * step, ldb);
    }
    beside();
  }
  if (pairs) pairs % 2 ? Even::end(c - 32, ldc) : Odd::end(c - 32, ldc);
  if (columns % 32 == 0) return;
  using Last = TilePair<0, false>;
  Last::begin(c, ldc, add);
  for (int64_t w = 0; w < words; w += 16) Last::step(a + w, lda, b + w / 16 * step, ldb);
  Last::end(c, ldc);
}

inline void tile_product(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t words, int64_t columns, float* c, int64_t ldc,
                         bool add) {
  tile_product(a, lda, b, ldb, words, columns, c, ldc, add, [] {});
}

}  // namespace
}  // namespace pagoda
