// Probability sums: the scores once more, now that every row's maximum and denominator are known.
#pragma once

#include "attention_block.hpp"
#include "attention_logits.hpp"

namespace pagoda {
namespace {

constexpr float kMean = 0.99999f;  // what is equal but for rounding counts as the mean

// Rows up to which keys are multiplied where they lie: packing a block costs as much as the products of thirty-two rows.
constexpr int kRowsInPlace = 8;

// Sums of as many registers as each has lanes, one in each lane.
inline Vec total_of_each(const Vec (&x)[kLanes]) {
#if defined(__AVX512F__)
  __m512 pairs[8], fours[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    pairs[i] = _mm512_unpacklo_ps((__m512)x[2 * i], (__m512)x[2 * i + 1]) + _mm512_unpackhi_ps((__m512)x[2 * i], (__m512)x[2 * i + 1]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
    fours[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)) + _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
  }
  const auto halves = [](__m512 a, __m512 b) { return _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xee); };
  const __m512 first = halves(fours[0], fours[1]), second = halves(fours[2], fours[3]);
  return (Vec)(_mm512_shuffle_f32x4(first, second, 0x88) + _mm512_shuffle_f32x4(first, second, 0xdd));
#else
  float totals[kLanes];
  for (int i = 0; i < kLanes; ++i) totals[i] = total_of(x[i]);
  return load(totals);
#endif
}

// out [rows][kBlock] = queries [rows][words] x keys of `slots` slots (padded), row by row of words.
template <typename Math>
void products_in_place(int rows, const float* queries, int64_t words, const char* const* keys, int slots, float* out) {
  for (int i = 0; i < slots; i += kLanes)
    for (int r = 0; r < rows; ++r) {
      Vec sums[kLanes] = {};
      for (int64_t w = 0; w < words; w += kLanes) {
        const Vec query = load(queries + r * words + w);
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) sums[j] = Math::step(sums[j], query, load((const float*)keys[i + j] + w));
      }
      store(out + r * kBlock + i, total_of_each(sums));
    }
}

template <typename Math>
void sum_probabilities(const AttentionArgs& a, const SumItem& item, const AttentionScratch& out) {
  const int64_t group = a.group(), k_words = Block<Math>::words_of(a.shape.k_dim), queries = a.num_queries(item.seq);
  const int64_t own = a.kv_lens[a.pair(item.seq, item.head)] - queries;  // slot of query 0
  const SumTarget& target = a.sum_targets[item.seq];
  const int64_t first = target.last && target.last < queries ? queries - target.last : 0;
  const bool in_place = (queries - first) * group <= kRowsInPlace && k_words % kLanes == 0;
  constexpr int kMost = kRowsAtOnce > kRowsInPlace ? kRowsAtOnce : kRowsInPlace;
  float* at = scratch.need(kMost * (k_words + kBlock) + Block<Math>::floats(a) + 64);
  float *query = at, *scores = query + padded(kMost * k_words);
  Block<Math> block(a, scores + kMost * kBlock);
  const PageRow pages(a, item.seq, item.head);
  BlockWeights weights(a, item.seq, item.head);
  Slots slots;
  Ahead none;
  float* const sums = target.sums + item.head * target.stride;
  float* const counts = target.counts ? target.counts + item.head * target.count_stride : nullptr;
  for (int64_t begin = item.slot_begin; begin < item.slot_end; begin += kBlock) {
    const int64_t end = begin + kBlock < item.slot_end ? begin + kBlock : int64_t{item.slot_end};
    pages.find(begin, end, slots);
    block.widen(pages, slots, false, none);
    if (!in_place) block.pack(slots, false, none);
    float total[kBlock] = {}, wanted[kBlock] = {};
    // Queries before `begin` see none of these slots, nor do those whose window has passed them.
    for (int64_t row = (first > begin - own ? first : begin - own) * group; row < queries * group;) {
      const int64_t most = in_place ? kRowsInPlace : kRowsAtOnce;
      const int here = int(queries * group - row < most ? queries * group - row : most);
      if (a.window && own + row / group - a.window + 1 >= end) break;
      for (int r = 0; r < here; ++r) {
        const int64_t token = a.q_starts[item.seq] + (row + r) / group;
        pack_query<Math>(a, token, item.head * group + (row + r) % group, k_words, query + r * k_words);
      }
      if (in_place) products_in_place<Math>(here, query, k_words, slots.k, block.count, scores);
      else product<Math>(here, query, k_words, block.keys, kBlock, k_words, padded(block.count), scores, kBlock, false, none);
      for (int r = 0; r < here; ++r, ++row) {
        const int64_t q_head = item.head * group + row % group, last = own + row / group;
        const float* norm = out.norms + 2 * ((a.q_starts[item.seq] + row / group) * a.num_q_heads + q_head);
        const Mask mask{a.window ? last - a.window + 1 : 0, last};
        if (last < begin || norm[0] == -kInf) continue;
        float* s = scores + r * kBlock;
        Logits found;
        prepare_logits(a, s, block.count, begin, mask, a.slopes ? a.slopes[q_head] : 0.0f, weights.of(begin, block.count), block.k_scales,
                       &found);
        const Vec mean = splat(kMean / float(last + 1 - (mask.first > 0 ? mask.first : 0)));
        for (int i = 0; i < block.count; i += kLanes) {
          // The weights that the denominator is made of, so that a slot seen alone has all of it.
          const Vec x = load(s + i), p = select(x == splat(-kInf), Vec{}, Math::weight(fused(x, found.unit, -norm[0]))) * norm[1];
          store(total + i, load(total + i) + p);
          if (counts) store(wanted + i, load(wanted + i) + select(p >= mean, splat(1.0f), Vec{}));
        }
      }
    }
    for (int i = 0; i < block.count; ++i) sums[begin + i] += total[i];
    if (counts)
      for (int i = 0; i < block.count; ++i) counts[begin + i] += wanted[i];
  }
}

}  // namespace
}  // namespace pagoda
