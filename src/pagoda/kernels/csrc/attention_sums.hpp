// Probability sums: the scores once more, now that every row's maximum and denominator are known.
#pragma once

#include "attention_block.hpp"
#include "attention_logits.hpp"

namespace pagoda {
namespace {

constexpr float kMean = 0.99999f;  // what is equal but for rounding counts as the mean

template <typename Math>
void sum_probabilities(const AttentionArgs& a, const SumItem& item, const AttentionScratch& out) {
  const int64_t group = a.group(), k_words = Block<Math>::words_of(a.shape.k_dim), queries = a.num_queries(item.seq);
  const int64_t own = a.kv_lens[a.pair(item.seq, item.head)] - queries;  // slot of query 0
  float* at = scratch.need(kRowsAtOnce * (k_words + kBlock) + Block<Math>::floats(a) + 64);
  float *query = at, *scores = query + padded(kRowsAtOnce * k_words);
  Block<Math> block(a, scores + kRowsAtOnce * kBlock);
  const PageRow pages(a, item.seq, item.head);
  Slots slots;
  Ahead none;
  const SumTarget& target = a.sum_targets[item.seq];
  const int64_t first = target.last && target.last < queries ? queries - target.last : 0;
  float* const sums = target.sums + item.head * target.stride;
  float* const counts = target.counts ? target.counts + item.head * target.count_stride : nullptr;
  for (int64_t begin = item.slot_begin; begin < item.slot_end; begin += kBlock) {
    const int64_t end = begin + kBlock < item.slot_end ? begin + kBlock : int64_t{item.slot_end};
    pages.find(begin, end, slots);
    block.widen(slots, false, none);
    block.pack(slots, false, none);
    float total[kBlock] = {}, wanted[kBlock] = {};
    // Queries before `begin` see none of these slots, nor do those whose window has passed them.
    for (int64_t row = (first > begin - own ? first : begin - own) * group; row < queries * group;) {
      const int here = int(queries * group - row < kRowsAtOnce ? queries * group - row : kRowsAtOnce);
      if (a.window && own + row / group - a.window + 1 >= end) break;
      for (int r = 0; r < here; ++r) {
        const int64_t token = a.q_starts[item.seq] + (row + r) / group;
        pack_query<Math>(a, token, item.head * group + (row + r) % group, k_words, query + r * k_words);
      }
      product<Math>(here, query, k_words, block.keys, kBlock, k_words, padded(block.count), scores, kBlock, false, none);
      for (int r = 0; r < here; ++r, ++row) {
        const int64_t q_head = item.head * group + row % group, last = own + row / group;
        const float* norm = out.norms + 2 * ((a.q_starts[item.seq] + row / group) * a.num_q_heads + q_head);
        const Mask mask{a.window ? last - a.window + 1 : 0, last};
        if (last < begin || norm[0] == -kInf) continue;
        float* s = scores + r * kBlock;
        Logits found;
        prepare_logits(a, s, block.count, begin, mask, a.slopes ? a.slopes[q_head] : 0.0f, block.k_scales, &found);
        const Vec mean = splat(kMean / float(last + 1 - (mask.first > 0 ? mask.first : 0)));
        for (int i = 0; i < block.count; i += kLanes) {
          const Vec x = load(s + i), p = select(x == splat(-kInf), Vec{}, exp2_of(x * found.unit - norm[0])) * norm[1];
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
