// Products of bytes for int4 pages (attention_bytes.hpp): a byte holds two codes, which become bytes in registers. Each group of 32 columns
// of a slot has a scale and a least number of its own,
//
//   q . k = sum over groups of scale * (q . codes) + least * (sum of q there)
//   sum of p v = sum over slots of (p scale) * (code - 8) + p * middle             middle = least + 8 scale
//
// so a row has bytes of weights for each group, beside the largest of a slot's scales, and its sum of p * middle is one of floats.
//
//   a row's 32 bytes    [columns 0..15 | 32..47], the low halves, and in the high ones [16..31 | 48..63]
#pragma once

#include "attention_bytes.hpp"

namespace pagoda {
namespace {

#if PAGODA_DPBF16

// Sums of a row of query codes where they meet one group of K each.
inline void sum_groups(const int8_t* codes, int64_t dim, float* sums) {
  for (int64_t g = 0; g < dim / kInt4Group; ++g) {
    int32_t sum = 0;
    for (int i = 0; i < kInt4Group; ++i) sum += codes[g * kInt4Group + i];
    sums[g] = float(sum);
  }
}

// out[row][0..15] = queries[row] . keys of 16 slots, eight from `first` and eight from `second`. Scales and least numbers of a group lie
// `stride_groups` from those of the one before.
template <int kRows>
PAGODA_OWN_REGISTERS void nibble_scores(const int8_t* queries, int64_t dim, const float* scales, const float* query_sums,
                                        const char* first, const char* second, int64_t stride, const float* key_scales,
                                        const float* key_least, int64_t stride_groups, float* out, int64_t ldo, const LinesInTurn& lines) {
  LinesInTurn soon = lines;
  const int64_t groups = dim / kInt4Group;
  Vec logits[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) logits[r] = Vec{};
#pragma GCC unroll 1
  for (int64_t g = 0; g < groups; ++g, queries += kInt4Group, ++query_sums) {
    __m512i sum[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sum[r] = _mm512_setzero_si512();
    __m512 key[4];
    four_words(first, second, stride, 4 * g, key);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      soon.next();
      const __m512i low = _mm512_and_si512((__m512i)key[i], _mm512_set1_epi8(15));
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16((__m512i)key[i], 4), _mm512_set1_epi8(15));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        int32_t words[2];
        memcpy(words, queries + r * dim + 4 * i, 4), memcpy(words + 1, queries + r * dim + kInt4Group / 2 + 4 * i, 4);
        sum[r] = _mm512_dpbusd_epi32(sum[r], low, _mm512_set1_epi32(words[0]));
        sum[r] = _mm512_dpbusd_epi32(sum[r], high, _mm512_set1_epi32(words[1]));
      }
    }
    const Vec scale = load(key_scales + g * stride_groups), least = load(key_least + g * stride_groups);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      logits[r] = fused((Vec)_mm512_cvtepi32_ps(sum[r]), scale, fused(least, splat(query_sums[r * groups]), logits[r]));
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) store(out + r * ldo, logits[r] * scales[r]);
}

// 64 codes less 8, times 16: those of the low halves, then of the high ones.
inline __m512i open_nibbles(const char* row) {
  const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)row));
  const __m512i upper = _mm512_mask_slli_epi16(both, 0x0000ffff, both, 4);
  return _mm512_ternarylogic_epi32(upper, _mm512_set1_epi8(char(0x88)), _mm512_set1_epi8(char(0xf0)), 0x28);  // (upper ^ 0x88) & 0xf0
}

// As byte_values_half(), of columns whose codes begin with byte `column` of a row. weights [row][2 groups][kBlock].
template <int kRows, int kHalf>
PAGODA_OWN_REGISTERS void nibble_values_half(const uint8_t* weights, const Eights& values, int64_t eights, int64_t column,
                                             __m512i (*sums)[4], const LinesInTurn& lines) {
  LinesInTurn soon = lines;
  const int64_t stride = values.stride;
  __m512i sum[kRows][2];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
  for (int64_t j = 0; j < 2 * eights; ++j, weights += 4) {
    const char* row = values.at[j / 2] + j % 2 * 4 * stride + column;
    soon.next();
    const __m512i a = open_nibbles(row), b = open_nibbles(row + stride);
    const __m512i c = open_nibbles(row + 2 * stride), d = open_nibbles(row + 3 * stride);
    const __m512i ab = kHalf ? _mm512_unpackhi_epi8(a, b) : _mm512_unpacklo_epi8(a, b);
    const __m512i cd = kHalf ? _mm512_unpackhi_epi8(c, d) : _mm512_unpacklo_epi8(c, d);
    const __m512i left = _mm512_unpacklo_epi16(ab, cd), right = _mm512_unpackhi_epi16(ab, cd);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      int32_t words[2];
      memcpy(words, weights + 2 * r * kBlock, 4), memcpy(words + 1, weights + (2 * r + 1) * kBlock, 4);
      const __m512i weight = _mm512_mask_set1_epi32(_mm512_set1_epi32(words[0]), 0xf0f0, words[1]);
      sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], weight, left);
      sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], weight, right);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sums[r][2 * kHalf] = sum[r][0], sums[r][2 * kHalf + 1] = sum[r][1];
}

// Sums of row r's columns c..c + 63: what there was before, its registers, and the middles of both groups.
inline void add_nibbles(const __m512i* parts, const ByteSteps& steps, const ByteRows& rows, int r, int64_t c, float* sums) {
  __m512i quarters[4];
  order_quarters(parts, quarters);
  const float* const middles = rows.middles + c / kInt4Group * kFewRows * kLanes + r;
  const float before = steps.before[r], scale = steps.now[r] * (1.0f / (255.0f * 16.0f));
#pragma GCC unroll 4
  for (int l = 0; l < 4; ++l) {
    float* const at = sums + 32 * (l % 2) + 16 * (l / 2);
    const Vec here = fused((Vec)_mm512_cvtepi32_ps(quarters[l]), splat(scale), splat(middles[l % 2 * kFewRows * kLanes]));
    store(at, fused(load(at), before, here));
  }
}

// The bytes of row r's weights for every group, and in middles its sums of p * middle lane by lane; returns that of p.
// `room`: [kBlock] floats.
inline Vec weigh_nibbles(const float* logits, int64_t lanes, float unit, float reference, const GroupScales& groups, int r, float* room,
                         const ByteRows& rows) {
  Vec sum{};
  for (int64_t i = 0; i < lanes; i += kLanes) {
    const Vec p = Pairs::weight(fused_less(load(logits + i), splat(unit), splat(reference)));
    sum += p;
    store(room + i, p * 255.0f);
  }
  for (int64_t g = 0; g < groups.v_count; ++g) {
    const float *const scales = groups.v_scales + g * groups.stride, *const middle = groups.v_middles + g * groups.stride;
    Vec all{};
    store_bytes(lanes, rows.weights + ((g / 2 * kFewRows + r) * 2 + g % 2) * kBlock, [&](int64_t i) {
      const Vec p = load(room + i);
      all = fused(p, load(middle + i), all);
      return byte_of(p, load(scales + i));
    });
    store(rows.middles + (g * kFewRows + r) * kLanes, all);
  }
  return sum;
}

// The rows' sums of p * middle, which are `now` times as much, for each group in its first lanes.
inline void add_up_middles(const ByteRows& rows, int count, int64_t groups, const float* now) {
  for (int64_t g = 0; g < groups; ++g) {
    float* const middles = rows.middles + g * kFewRows * kLanes;
    Vec each[kFewRows] = {};
    for (int r = 0; r < count; ++r) each[r] = load(middles + r * kLanes);
    store(middles, each_row_of(each, [](Vec x, Vec y) { return x + y; }) * load(now) * (1.0f / 255.0f));
  }
}

template <int kRows>
struct FewNibbles {
  static constexpr int kCount = kRows;
  static constexpr int kLinesARow = 16;  // with 4 to 12 as fast

  template <typename Math>
  static void scores(const ByteRows& rows, int64_t row, const Block<Math>& block, const Slots& slots, float* out, Ahead& ahead) {
    const int64_t dim = block.a.shape.k_dim;
    const GroupScales& groups = block.groups;
    for (int i = 0; i < slots.count; i += 16) {
      const char *first = slots.k8.at[i / kEight], *second = slots.k8.at[i / kEight + 1];
      nibble_scores<kRows>(rows.queries + row * dim, dim, rows.scales + row, (const float*)rows.sums + row * groups.k_count, first, second,
                           slots.k8.stride, groups.k_scales + i, groups.k_least + i, groups.stride, out + i, kBlock,
                           ahead.some(dim / 8, first));
    }
  }

  template <typename Math>
  static Vec weigh(const ByteRows& rows, int r, const Logits& found, const float* logits, int64_t lanes, float reference,
                   const ByteScales&, const Block<Math>& block, float* room) {
    return weigh_nibbles(logits, lanes, found.unit, reference, block.groups, r, room, rows);
  }

  template <typename Math>
  static void values(const ByteRows& rows, const Block<Math>& block, const Slots& slots, const ByteSteps& steps, float, float* sums,
                     int64_t lds, Ahead& ahead) {
    const Eights& values = slots.v8;
    const int64_t eights = (slots.count + kEight - 1) / kEight;
    add_up_middles(rows, kRows, block.groups.v_count, steps.now);
    for (int64_t c = 0; c < block.a.v_dim; c += kBytesAtOnce) {
      const uint8_t* const weights = rows.weights + c / kBytesAtOnce * 2 * kFewRows * kBlock;
      __m512i parts[kRows][4];
      nibble_values_half<kRows, 0>(weights, values, eights, c / 2, parts, ahead.some(2 * eights, values.at[0]));
      nibble_values_half<kRows, 1>(weights, values, eights, c / 2, parts, ahead.some(2 * eights, values.at[0]));
      for (int r = 0; r < kRows; ++r) add_nibbles(parts[r], steps, rows, r, c, sums + r * lds + c);
    }
  }
};

#endif

}  // namespace
}  // namespace pagoda
