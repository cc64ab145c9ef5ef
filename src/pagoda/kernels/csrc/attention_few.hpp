// Products for few rows (a decode step: one query, the heads of its group) that read bfloat16 slots where they lie. Packing a
// block, as for many rows, costs as much as eight rows' products; here K is transposed and V interleaved in registers, and
// nothing is stored (decode over 4096 tokens in the second-level cache: 70 cycles a slot packed, 58 so).
#pragma once

#include "attention_math.hpp"
#include "attention_pack.hpp"

#if PAGODA_DPBF16

namespace pagoda {
namespace {

constexpr int kFewRows = 8;

// Adds words kFrom..15 of sixteen that begin at `word`.
template <int kRows, int kFrom>
__attribute__((always_inline)) inline void few_words(const float* queries, int64_t k_words, const char* const* keys, int64_t word,
                                                     Vec (&sum)[kRows]) {
  __m512 key[16];
  transpose_words(keys, word, key);
#pragma GCC unroll 16
  for (int i = kFrom; i < 16; ++i)
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sum[r] = Pairs::step(sum[r], splat_word(queries + r * k_words + word + i), key[i]);
}

// out[row][0..15] = queries[row] . keys of 16 slots; k_words at least 16 and a multiple of 8.
template <int kRows>
PAGODA_OWN_REGISTERS void few_scores(const float* queries, int64_t k_words, const char* const* keys, float* out, int64_t ldo) {
  Vec sum[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sum[r] = Vec{};
  int64_t w = 0;
  for (; w + 16 <= k_words; w += 16) few_words<kRows, 0>(queries, k_words, keys, w, sum);
  if (w < k_words) few_words<kRows, 8>(queries, k_words, keys, k_words - 16, sum);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) store(out + r * ldo, sum[r]);
}

// sums[row][0..31] += probabilities[row] . 32 columns of the values of `pairs` pairs of slots.
template <int kRows>
PAGODA_OWN_REGISTERS void few_values(const float* probs, int64_t ldp, const char* const* values, int64_t pairs, int64_t column,
                                     float* sums, int64_t lds, const char* soon, int64_t lines) {
  const __m512i low = _mm512_loadu_si512(kInterleaveLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  Vec sum[kRows][2];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sum[r][0] = load(sums + r * lds), sum[r][1] = load(sums + r * lds + 16);
  const char* const last = soon + 64 * (lines > 0 ? lines - 1 : 0);
  for (int64_t j = 0; j < pairs; ++j) {
    __builtin_prefetch(soon, 0, 2);
    soon += soon < last ? 64 : 0;
    const __m512i x = _mm512_loadu_si512(values[2 * j] + 2 * column), y = _mm512_loadu_si512(values[2 * j + 1] + 2 * column);
    const Vec left = (Vec)_mm512_permutex2var_epi16(x, low, y), right = (Vec)_mm512_permutex2var_epi16(x, high, y);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec p = splat_word(probs + r * ldp + j);
      sum[r][0] = Pairs::step(sum[r][0], p, left);
      sum[r][1] = Pairs::step(sum[r][1], p, right);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) store(sums + r * lds, sum[r][0]), store(sums + r * lds + 16, sum[r][1]);
}

// The same for the last 16 columns.
template <int kRows>
PAGODA_OWN_REGISTERS void few_last_values(const float* probs, int64_t ldp, const char* const* values, int64_t pairs,
                                          int64_t column, float* sums, int64_t lds) {
  Vec sum[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sum[r] = load(sums + r * lds);
  for (int64_t j = 0; j < pairs; ++j) {
    const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(values[2 * j] + 2 * column)));
    const __m512i y = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(values[2 * j + 1] + 2 * column)));
    const Vec both = (Vec)_mm512_or_si512(x, _mm512_slli_epi32(y, 16));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sum[r] = Pairs::step(sum[r], splat_word(probs + r * ldp + j), both);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) store(sums + r * lds, sum[r]);
}

template <int kRows>
struct Few {
  static void scores(const float* queries, int64_t k_words, const char* const* keys, int slots, float* out, int64_t ldo,
                     Ahead& ahead) {
    for (int i = 0; i < slots; i += 16) {
      ahead.lines(24);
      few_scores<kRows>(queries, k_words, keys + i, out + i, ldo);
    }
  }
  static void values(const float* probs, int64_t ldp, const char* const* values, int64_t pairs, int64_t columns, float* sums,
                     int64_t lds, Ahead& ahead) {
    int64_t c = 0;
    for (; c + 32 <= columns; c += 32) {
      const char* soon = values[0];
      const int64_t lines = ahead.take(pairs, &soon);
      few_values<kRows>(probs, ldp, values, pairs, c, sums + c, lds, soon, lines);
    }
    if (c < columns) few_last_values<kRows>(probs, ldp, values, pairs, c, sums + c, lds);
  }
};

// Calls act(Few<rows>{}).
template <typename Act>
void with_few(int rows, Act act) {
  switch (rows) {
    case 1: return act(Few<1>{});
    case 2: return act(Few<2>{});
    case 3: return act(Few<3>{});
    case 4: return act(Few<4>{});
    case 5: return act(Few<5>{});
    case 6: return act(Few<6>{});
    case 7: return act(Few<7>{});
    default: return act(Few<8>{});
  }
}

}  // namespace
}  // namespace pagoda

#endif
