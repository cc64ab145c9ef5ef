// Products of bytes for int8 pages (vpdpbusd: four products of a word at once, twice those of bfloat16 pairs), so that codes need
// not be widened. Queries are rounded to bytes, a scale a row; weights (probability x scale of the slot's V) to bytes, a scale a
// row and block of slots. What that loses is stated in docs/kernels.md and tested; without it (AttentionArgs::byte_products) codes
// become bfloat16 numbers, without loss.
//
//   K codes c are signed, and one factor must not be:   q . c = q . (c + 128) - 128 * sum(q)
//   V codes are signed, weights are not.
#pragma once

#include "attention_block.hpp"
#include "attention_few.hpp"
#include "attention_logits.hpp"

namespace pagoda {
namespace {

constexpr int64_t kBytesAtOnce = 64;  // columns in a register: head dimensions must be multiples

#if PAGODA_DPBF16

// A row of queries: codes [dim], and in `scale`, `sum` what they mean.
inline void round_query(const uint16_t* q, int64_t dim, int8_t* codes, float* scale, int32_t* sum) {
  Vec most{};
  for (int64_t d = 0; d < dim; d += kBytesAtOnce)
#pragma GCC unroll 4
    for (int64_t i = 0; i < kBytesAtOnce; i += kLanes) most = maximum((Vec)_mm512_abs_ps(load(q + d + i)), most);
  const float top = largest(most), unit = top > 0.0f ? 127.0f / top : 0.0f;
  __m512i total = _mm512_setzero_si512();
  for (int64_t d = 0; d < dim; d += kBytesAtOnce) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < kBytesAtOnce; i += kLanes) {
      const __m512i code = _mm512_cvtps_epi32(load(q + d + i) * unit);
      total = _mm512_add_epi32(total, code);
      _mm_storeu_si128((__m128i*)(codes + d + i), _mm512_cvtsepi32_epi8(code));
    }
  }
  *scale = top * (1.0f / 127.0f), *sum = _mm512_reduce_add_epi32(total);
}

// sum + products of codes (unsigned) and a word of `queries` (signed). g++ 12 makes two instructions of it otherwise, and copies sums
// from register to register: 127 instructions for four words of sixteen slots and seven rows, 83 so.
inline void add_word(__m512i& sum, __m512i codes, const int8_t* queries) {
  using Word __attribute__((may_alias)) = int32_t;
  __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(*(const Word*)queries));
}

// out[row][0..15] = scales[row] * key_scales[0..15] * (queries[row] . codes of 16 slots, eight from `first` and eight from `second`).
// kDim: the columns where a compiler knows them, so that two addresses serve all slots; else 0.
template <int kRows, int kDim>
PAGODA_OWN_REGISTERS void byte_scores(const int8_t* queries, int64_t columns, const float* scales, const int32_t* query_sums,
                                      const char* first, const char* second, const float* key_scales, float* out, int64_t ldo,
                                      const LinesInTurn& lines) {
  LinesInTurn soon = lines;
  const int64_t dim = kDim ? kDim : columns, stride = dim;
  __m512i sum[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sum[r] = _mm512_set1_epi32(-128 * query_sums[r]);
#pragma GCC unroll 1
  for (int64_t d = 0; d < dim; d += 16) {
    __m512 key[4];
    four_words(first, second, stride, d / 4, key);
    soon.next_four();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512i code = _mm512_xor_si512((__m512i)key[i], _mm512_set1_epi8(char(0x80)));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) add_word(sum[r], code, queries + r * dim + d + 4 * i);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) store(out + r * ldo, (Vec)_mm512_cvtepi32_ps(sum[r]) * (load(key_scales) * scales[r]));
}

// Half of 64 columns of V for `eights` times eight slots: sums[row][2 half], [2 half + 1] of weights x codes. Register m of a row
// holds column 16 l + 4 m + t in word t of its quarter l, as unpacking by quarters leaves them.
template <int kRows, int kHalf, int kDim>
PAGODA_OWN_REGISTERS void byte_values_half(const uint8_t* weights, int64_t ldw, const Eights& values, int64_t eights,
                                           int64_t column, __m512i (*sums)[4], const LinesInTurn& lines) {
  LinesInTurn soon = lines;
  const int64_t stride = kDim ? kDim : values.stride;
  __m512i sum[kRows][2];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
  for (int64_t j = 0; j < 2 * eights; ++j, weights += 4) {
    const char* row = values.at[j / 2] + j % 2 * 4 * stride + column;
    soon.next();
    const __m512i a = _mm512_loadu_si512(row), b = _mm512_loadu_si512(row + stride);
    const __m512i c = _mm512_loadu_si512(row + 2 * stride), d = _mm512_loadu_si512(row + 3 * stride);
    const __m512i ab = kHalf ? _mm512_unpackhi_epi8(a, b) : _mm512_unpacklo_epi8(a, b);
    const __m512i cd = kHalf ? _mm512_unpackhi_epi8(c, d) : _mm512_unpacklo_epi8(c, d);
    const __m512i left = _mm512_unpacklo_epi16(ab, cd), right = _mm512_unpackhi_epi16(ab, cd);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      int32_t word;
      memcpy(&word, weights + r * ldw, 4);
      const __m512i weight = _mm512_set1_epi32(word);
      sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], weight, left);
      sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], weight, right);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sums[r][2 * kHalf] = sum[r][0], sums[r][2 * kHalf + 1] = sum[r][1];
}

// The four registers of a row, their columns in order again.
inline void order_quarters(const __m512i* parts, __m512i (&quarters)[4]) {
  const __m512i a = _mm512_shuffle_i32x4(parts[0], parts[1], 0x88), b = _mm512_shuffle_i32x4(parts[2], parts[3], 0x88);
  const __m512i c = _mm512_shuffle_i32x4(parts[0], parts[1], 0xdd), d = _mm512_shuffle_i32x4(parts[2], parts[3], 0xdd);
  quarters[0] = _mm512_shuffle_i32x4(a, b, 0x88), quarters[1] = _mm512_shuffle_i32x4(c, d, 0x88);
  quarters[2] = _mm512_shuffle_i32x4(a, b, 0xdd), quarters[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

// sums[0..63] = before * sums + scale * a row's registers.
inline void add_bytes(const __m512i* parts, float before, float scale, float* sums) {
  __m512i quarters[4];
  order_quarters(parts, quarters);
#pragma GCC unroll 4
  for (int l = 0; l < 4; ++l) store(sums + 16 * l, fused(load(sums + 16 * l), before, (Vec)_mm512_cvtepi32_ps(quarters[l]) * scale));
}

struct ByteRows {  // queries of a tile, and the weights of the rows under way
  int8_t* queries;    // [rows][k_dim]
  float* scales;      // [rows]
  int32_t* sums;      // [rows] of a row's codes; of four bits float [rows][groups of K]: of those that meet a group's
  uint8_t* weights;   // [kFewRows][kBlock]; of four bits [pairs of groups of V][kFewRows][2][kBlock]
  float* turned;      // of tiles: attention_byte_tiles.hpp
  float* middles;     // of four bits: [groups of V][kFewRows][kLanes] (attention_nibbles.hpp)
};

template <int kRows>
struct FewBytes {
  static constexpr int kCount = kRows;
  static constexpr int kLinesARow = 8;  // asked for while a row is weighed: sixteen leave none beside the values (62.4 us a layer of 4096 slots, 65.2 so)

  template <typename Math>
  static void scores(const ByteRows& rows, int64_t row, const Block<Math>& block, const Slots& slots, float* out, Ahead& ahead) {
    if (block.a.shape.k_dim == kBytesAtOnce) scores_of<kBytesAtOnce>(rows, row, block, slots, out, ahead);
    else scores_of<0>(rows, row, block, slots, out, ahead);
  }

  template <int kDim, typename Math>
  static void scores_of(const ByteRows& rows, int64_t row, const Block<Math>& block, const Slots& slots, float* out, Ahead& ahead) {
    const int64_t dim = block.a.shape.k_dim;
    for (int i = 0; i < slots.count; i += 16) {
      const char *first = slots.k8.at[i / kEight], *second = slots.k8.at[i / kEight + 1];
      byte_scores<kRows, kDim>(rows.queries + row * dim, dim, rows.scales + row, rows.sums + row, first, second, block.k_scales + i, out + i,
                               kBlock, ahead.some(dim / 4, first));
    }
  }

  template <typename Math>
  static Vec weigh(const ByteRows& rows, int r, const Logits& found, const float* logits, int64_t lanes, float reference,
                   const ByteScales& scales, const Block<Math>&, float*) {
    return weigh_bytes(logits, lanes, found.unit, reference, scales, rows.weights + r * kBlock);
  }

  template <typename Math>
  static void values(const ByteRows& rows, const Block<Math>& block, const Slots& slots, const ByteSteps& steps, float broken,
                     float* sums, int64_t lds, Ahead& ahead) {
    if (block.a.v_dim == kBytesAtOnce && slots.v8.stride == kBytesAtOnce) values_of<kBytesAtOnce>(rows, block, slots, steps, broken, sums, lds, ahead);
    else values_of<0>(rows, block, slots, steps, broken, sums, lds, ahead);
  }

  template <int kDim, typename Math>
  static void values_of(const ByteRows& rows, const Block<Math>& block, const Slots& slots, const ByteSteps& steps, float broken,
                        float* sums, int64_t lds, Ahead& ahead) {
    const Eights& values = slots.v8;
    const int64_t eights = (slots.count + kEight - 1) / kEight;
    for (int64_t c = 0; c < block.a.v_dim; c += kBytesAtOnce) {
      __m512i parts[kRows][4];
      byte_values_half<kRows, 0, kDim>(rows.weights, kBlock, values, eights, c, parts, ahead.some(2 * eights, values.at[0]));
      byte_values_half<kRows, 1, kDim>(rows.weights, kBlock, values, eights, c, parts, ahead.some(2 * eights, values.at[0]));
      for (int r = 0; r < kRows; ++r) add_bytes(parts[r], steps.before[r], fused(steps.now[r], 1.0f / 255.0f, broken), sums + r * lds + c);
    }
  }
};

#endif

}  // namespace
}  // namespace pagoda
