// Rows of a decode step against a block whose slots are read where they lie (attention_few.hpp, attention_bytes.hpp).
#pragma once

#include "attention_few.hpp"
#include "attention_tile_rows.hpp"

#if PAGODA_DPBF16

namespace pagoda {
namespace {

// Lines asked for while a row of numbers is weighed, beside those between products. (Those of codes: FewBytes, FewNibbles.)
constexpr int kLinesARow = 16;

// Up to kFewRows rows of numbers.
template <typename Math>
void attend_few(TileRows<Math>& t, Block<Math>& block, const Slots& slots, int64_t begin, Ahead& ahead) {
  Logits found[kFewRows];
  with_few<Few>(t.rows, [&](auto products) {
    products.scores(t.queries, t.k_words, slots.k8, slots.count, t.scores, kBlock, ahead);
    const Seen seen = t.seen(0, t.rows, begin, block.count);
    t.rise(0, t.rows, {block.count, seen.all && seen.slots == block.count}, begin, block, 0, t.scores, found);
    for (int r = 0; r < t.rows; ++r) {
      ahead.lines(kLinesARow);
      t.weigh(r, block.count, t.scores + r * kBlock, found[r], t.probs + r * kBlock, block);
    }
    products.values(t.probs, kBlock, slots.v8, slots.count, t.a.v_dim, t.sums, t.v_stride, ahead);
  });
}

template <template <int> class Few, typename Math>
void attend_codes(TileRows<Math>& t, Block<Math>& block, const ByteScales& scales, const Slots& slots, int64_t begin, Ahead& ahead) {
  const int lanes = int(padded(block.count));
  Logits found[kFewRows];
  Vec highs[kFewRows] = {};
  ByteSteps steps;
  each_few_rows(t.rows, [&](int row, int here) {
    with_few<Few>(here, [&](auto products) {
      products.scores(t.byte_rows, row, block, slots, t.scores, ahead);
      find_steps<decltype(products)::kCount>(t, block.count, begin, row, scales, found, highs, steps);
      for (int r = 0; r < here; ++r) {
        ahead.lines(decltype(products)::kLinesARow);
        const Vec sum = products.weigh(t.byte_rows, r, found[r], t.scores + r * kBlock, lanes, steps.references[r], scales, block, t.probs);
        float* total = t.totals + (row + r) * kLanes;
        store(total, fused(load(total), steps.before[r], sum * steps.now[r]));
      }
      products.values(t.byte_rows, block, slots, steps, scales.broken, t.sums + row * t.v_stride, t.v_stride, ahead);
    });
  });
}

// Rows of bytes, kFewRows at a time.
template <typename Math>
void attend_bytes(TileRows<Math>& t, Block<Math>& block, const Slots& slots, int64_t begin, Ahead& ahead) {
  const int lanes = int(padded(block.count));
  ByteScales scales;
  if (t.a.shape.store == Store::int8) {
    scales.prepare(block.v_scales, lanes);
    return attend_codes<FewBytes>(t, block, scales, slots, begin, ahead);
  }
  block.groups.find_largest(lanes, t.probs);
  scales.prepare(t.probs, lanes);
  attend_codes<FewNibbles>(t, block, scales, slots, begin, ahead);
}

}  // namespace
}  // namespace pagoda

#endif
