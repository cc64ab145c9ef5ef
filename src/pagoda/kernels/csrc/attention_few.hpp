// Products for few rows (a decode step: one query, the heads of its group) that read bfloat16 slots where they lie. Packing a
// block, as for many rows, costs as much as eight rows' products; here K is transposed and V interleaved in registers, and
// nothing is stored (decode over 4096 tokens in the second-level cache: 70 cycles a slot packed, 58 so).
#pragma once

#include "attention_byte_weights.hpp"
#include "attention_math.hpp"
#include "attention_pack.hpp"
#include "attention_slots.hpp"

#if PAGODA_DPBF16

namespace pagoda {
namespace {

// Words word..word + 3 of sixteen slots, lane by lane: out[w][slot]. Quarters of rows are put together on their way from memory,
// which leaves half of a transposition's shuffles, and so little at a time that multiplications run beside them.
__attribute__((always_inline)) inline void four_words(const char* first, const char* second, int64_t stride, int64_t word,
                                                      __m512 (&out)[4]) {
  __m512 x[4], y[4];
  const auto quarter = [&](const char* row) { return _mm_loadu_ps((const float*)(row + 4 * word)); };
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm512_insertf32x4(_mm512_castps128_ps512(quarter(first + i * stride)), quarter(first + (i + 4) * stride), 1);
    x[i] = _mm512_insertf32x4(x[i], quarter(second + i * stride), 2);
    x[i] = _mm512_insertf32x4(x[i], quarter(second + (i + 4) * stride), 3);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 4; i += 2) y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]), y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    out[2 * i] = (__m512)_mm512_unpacklo_pd((__m512d)y[i], (__m512d)y[i + 2]);
    out[2 * i + 1] = (__m512)_mm512_unpackhi_pd((__m512d)y[i], (__m512d)y[i + 2]);
  }
}

// out[row][0..15] = queries[row] . keys of 16 slots, eight from `first` and eight from `second`; k_words a multiple of 4.
template <int kRows, typename Soon>
PAGODA_OWN_REGISTERS void few_scores(const float* queries, int64_t k_words, const char* first, const char* second, int64_t stride,
                                     float* out, int64_t ldo, const Soon& lines) {
  Soon soon = lines;
  Vec sum[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sum[r] = Vec{};
#pragma GCC unroll 1
  for (int64_t w = 0; w < k_words; w += 4) {
    __m512 key[4];
    four_words(first, second, stride, w, key);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      soon.next();
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sum[r] = Pairs::step(sum[r], splat_word(queries + r * k_words + w + i), key[i]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) store(out + r * ldo, sum[r]);
}

// sums[row][0..31] += probabilities[row] . 32 columns of the values of `eights` times eight slots.
template <int kRows>
PAGODA_OWN_REGISTERS void few_values(const float* probs, int64_t ldp, const Eights& values, int64_t eights, int64_t column,
                                     float* sums, int64_t lds, const LinesInTurn& lines, const LinesInTurn& others) {
  LinesInTurn soon = lines, later = others;
  const __m512i low = _mm512_loadu_si512(kInterleaveLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const int64_t stride = values.stride;
  Vec sum[kRows][2];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sum[r][0] = load(sums + r * lds), sum[r][1] = load(sums + r * lds + 16);
  for (int64_t e = 0; e < eights; ++e) {
    const char* row = values.at[e] + 2 * column;
#pragma GCC unroll 1
    for (int j = 0; j < 4; ++j, row += 2 * stride, ++probs) {
      soon.next(), later.next();
      const __m512i x = _mm512_loadu_si512(row), y = _mm512_loadu_si512(row + stride);
      const Vec left = (Vec)_mm512_permutex2var_epi16(x, low, y), right = (Vec)_mm512_permutex2var_epi16(x, high, y);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vec p = splat_word(probs + r * ldp);
        sum[r][0] = Pairs::step(sum[r][0], p, left);
        sum[r][1] = Pairs::step(sum[r][1], p, right);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) store(sums + r * lds, sum[r][0]), store(sums + r * lds + 16, sum[r][1]);
}

// The same for the last 16 columns.
template <int kRows>
PAGODA_OWN_REGISTERS void few_last_values(const float* probs, int64_t ldp, const Eights& values, int64_t eights, int64_t column,
                                          float* sums, int64_t lds) {
  const int64_t stride = values.stride;
  Vec sum[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sum[r] = load(sums + r * lds);
  for (int64_t e = 0; e < eights; ++e) {
    const char* row = values.at[e] + 2 * column;
#pragma GCC unroll 1
    for (int j = 0; j < 4; ++j, row += 2 * stride, ++probs) {
      const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)row));
      const __m512i y = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(row + stride)));
      const Vec both = (Vec)_mm512_or_si512(x, _mm512_slli_epi32(y, 16));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sum[r] = Pairs::step(sum[r], splat_word(probs + r * ldp), both);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) store(sums + r * lds, sum[r]);
}

template <int kRows>
struct Few {
  static void scores(const float* queries, int64_t k_words, const Eights& keys, int slots, float* out, int64_t ldo, Ahead& ahead) {
    for (int i = 0; i < slots; i += 16) {
      const char *first = keys.at[i / kEight], *second = keys.at[i / kEight + 1];
      few_scores<kRows>(queries, k_words, first, second, keys.stride, out + i, ldo, ahead.some(k_words, first));
    }
  }
  static void values(const float* probs, int64_t ldp, const Eights& values, int slots, int64_t columns, float* sums, int64_t lds,
                     Ahead& ahead) {
    const int64_t eights = (slots + kEight - 1) / kEight;
    int64_t c = 0;
    for (; c + 32 <= columns; c += 32) {
      const LinesInTurn soon = ahead.some(4 * eights, values.at[0]), later = ahead.some(4 * eights, values.at[0]);
      few_values<kRows>(probs, ldp, values, eights, c, sums + c, lds, soon, later);
    }
    if (c < columns) few_last_values<kRows>(probs, ldp, values, eights, c, sums + c, lds);
  }
};

// Calls act(Of<rows>{}).
template <template <int> class Of, typename Act>
void with_few(int rows, Act act) {
  switch (rows) {
    case 1: return act(Of<1>{});
    case 2: return act(Of<2>{});
    case 3: return act(Of<3>{});
    case 4: return act(Of<4>{});
    case 5: return act(Of<5>{});
    case 6: return act(Of<6>{});
    case 7: return act(Of<7>{});
    default: return act(Of<8>{});
  }
}

}  // namespace
}  // namespace pagoda

#endif
