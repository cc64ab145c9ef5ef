// The arithmetic of attention for one instruction set: products of small row-major matrices kept in registers, and 2^x.
//
// Everything is made of 32-bit words. A word is a float, or a pair of bfloat16 where the machine multiplies pairs
// (vdpbf16ps): then `words` counts pairs, and the same loop serves both.
#pragma once

#include "attention_ahead.hpp"
#include "attention_pack.hpp"
#include "page_shape.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

// The product keeps its sums in registers only when compiled alone: inlined, g++ 12 spilled half of them.
#define PAGODA_OWN_REGISTERS __attribute__((noinline))

constexpr float kLog2E = 1.44269504f;

inline Vec exp2_of(Vec x);

struct Floats {
  using Number = float;
  static constexpr int kPerWord = 1;
  static bool native(const PageShape& p) { return p.store == Store::f32; }
  static Vec step(Vec sum, Vec a, Vec b) { return fused(a, b, sum); }
  static constexpr bool kExactZero = false;        // 2^-inf is a little more
  static Vec weight(Vec x) { return exp2_of(x); }  // 2^x of a logit less its row's maximum
  static void store_two(Vec first, Vec second, float* words, int slot) {
    store(words + slot, first), store(words + slot + kLanes, second);
  }
  static void pack_values(const char* const* rows, int64_t columns, int64_t padded, float* out) {
    pack_value((const float*)rows[0], columns, padded, out);
  }
};

#if PAGODA_DPBF16
struct Pairs {
  using Number = uint16_t;
  static constexpr int kPerWord = 2;
  static bool native(const PageShape& p) { return p.store == Store::bf16 && p.k_dim % 2 == 0; }
  static void pack_values(const char* const* rows, int64_t columns, int64_t padded, float* out) {
    pack_value_pair((const uint16_t*)rows[0], (const uint16_t*)rows[1], columns, padded, out);
  }
  static Vec step(Vec sum, Vec a, Vec b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
  static constexpr bool kExactZero = true;
  // 2^x as weights that become bfloat16 need it: within 1e-4 (rounding: 2e-3), 0 for -inf, in half of the instructions. A minimax
  // polynomial of degree 3 of what is above the next whole number below.
  static Vec weight(Vec x) {
    const Vec r = (Vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    Vec p = fused(r, 7.802452264e-2f, 2.260671554e-1f);
    p = fused(p, r, 6.958335405e-1f);
    p = fused(p, r, 9.999252185e-1f);
    return (Vec)_mm512_scalef_ps((__m512)p, (__m512)x);
  }
#if PAGODA_AMX
  // Slot i and slot i + 16 in one word, rounded to nearest, ties away from zero: two instructions less than conversion takes, and
  // where registers are slots and lanes rows (attention_tiled.hpp) as many.
  static Vec pair_of(Vec first, Vec second) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i x = _mm512_add_epi32((__m512i)first, half), y = _mm512_add_epi32((__m512i)second, half);
    return (Vec)_mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(x, 16), y);
  }
  static void store_two(Vec first, Vec second, float* words, int slot) { store(words + slot / 2, pair_of(first, second)); }
#else
  static void store_two(Vec first, Vec second, float* words, int slot) {
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    memcpy(words + slot / 2, &both, sizeof both);
  }
#endif
};
#endif

inline Vec splat_word(const float* p) {  // all 32 bits, whatever they mean
  int32_t bits;
  memcpy(&bits, p, 4);
  return (Vec)(bits - IntVec{});
}

// c[row][column] (+)= sum over w of a[row][w] * b[w][column], for kRows rows and kVectors registers of columns.
template <typename Math, int kRows, int kVectors>
PAGODA_OWN_REGISTERS void product_tile(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t words, float* c,
                                       int64_t ldc, bool add, const LinesInTurn& lines) {
  LinesInTurn soon = lines;
  Vec sum[kRows][kVectors];
  const float* const end = a + words;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[r][v] = add ? load(c + r * ldc + v * kLanes) : Vec{};
  for (; a != end; ++a, b += ldb) {
    soon.next();
    Vec x[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) x[v] = load(b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec y = splat_word(a + r * lda);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[r][v] = Math::step(sum[r][v], y, x[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(c + r * ldc + v * kLanes, sum[r][v]);
}

constexpr int kRowsAtOnce = 6;                          // with the registers of columns below: 24 sums of AVX-512's 32,
constexpr int kVectorsAtOnce = kLanes == 16 ? 4 : 2;    // else 12 of 16

template <typename Math, int kRows, int kVectors>
inline void product_columns(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t words, float* c, int64_t ldc,
                            bool add, Ahead& ahead) {
  product_tile<Math, kRows, kVectors>(a, lda, b, ldb, words, c, ldc, add, ahead.some(words, (const char*)b));
}

template <typename Math, int kRows>
void product_rows(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t words, int64_t columns, float* c,
                  int64_t ldc, bool add, Ahead& ahead) {
  int64_t at = 0;
  for (; at + kVectorsAtOnce * kLanes <= columns; at += kVectorsAtOnce * kLanes)
    product_columns<Math, kRows, kVectorsAtOnce>(a, lda, b + at, ldb, words, c + at, ldc, add, ahead);
  if (kVectorsAtOnce > 2 && at + 2 * kLanes <= columns) {
    product_columns<Math, kRows, 2>(a, lda, b + at, ldb, words, c + at, ldc, add, ahead);
    at += 2 * kLanes;
  }
  if (at < columns) product_columns<Math, kRows, 1>(a, lda, b + at, ldb, words, c + at, ldc, add, ahead);
}

// rows is at most kRowsAtOnce; columns a multiple of kLanes.
template <typename Math>
void product(int rows, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t words, int64_t columns, float* c,
             int64_t ldc, bool add, Ahead& ahead) {
  switch (rows) {
    case 6: return product_rows<Math, 6>(a, lda, b, ldb, words, columns, c, ldc, add, ahead);
    case 5: return product_rows<Math, 5>(a, lda, b, ldb, words, columns, c, ldc, add, ahead);
    case 4: return product_rows<Math, 4>(a, lda, b, ldb, words, columns, c, ldc, add, ahead);
    case 3: return product_rows<Math, 3>(a, lda, b, ldb, words, columns, c, ldc, add, ahead);
    case 2: return product_rows<Math, 2>(a, lda, b, ldb, words, columns, c, ldc, add, ahead);
    default: return product_rows<Math, 1>(a, lda, b, ldb, words, columns, c, ldc, add, ahead);
  }
}

// 2^x for x <= 0, flushed to 2^-126 below it; -inf gives that too. A minimax polynomial on [-1/2, 1/2]: within 2e-7.
inline Vec exp2_of(Vec x) {
  x = maximum(x, splat(-126.0f));
#if defined(__AVX512F__)
  const Vec whole = (Vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = x - whole;
#else
  const Vec shifted = x + splat(12582912.0f);  // 1.5 * 2^23: rounds to the nearest integer, whose bits are the low ones
  const Vec r = x - (shifted - splat(12582912.0f));
#endif
  Vec p = fused(r, 1.326472690e-3f, 9.671512661e-3f);
  p = fused(p, r, 5.550733744e-2f);
  p = fused(p, r, 2.402224208e-1f);
  p = fused(p, r, 6.931469776e-1f);
  p = fused(p, r, 1.0f);
#if defined(__AVX512F__)
  return (Vec)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
  return (Vec)((IntVec)p + ((IntVec)shifted << 23));
#endif
}

inline float exp2_of(float x) {
  float lanes[kLanes];
  store(lanes, exp2_of(splat(x)));
  return lanes[0];
}

inline bool any(IntVec mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)mask) != 0;
#else
  for (int i = 0; i < kLanes; ++i)
    if (mask[i]) return true;
  return false;
#endif
}

inline float largest(Vec x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(x);
#else
  float lanes[kLanes], top = -kInf;
  store(lanes, x);
  for (float lane : lanes) top = lane > top ? lane : top;
  return top;
#endif
}

}  // namespace
}  // namespace pagoda
