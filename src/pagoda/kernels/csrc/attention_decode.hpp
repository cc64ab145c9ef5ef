// Rows of a decode step against a block whose slots are read where they lie (attention_few.hpp, attention_bytes.hpp).
#pragma once

#include "attention_few.hpp"
#include "attention_tile_rows.hpp"

#if PAGODA_DPBF16

namespace pagoda {
namespace {

// Lines asked for while a row is weighed, beside those between products: so many that a block of int8 is under way before the
// products of its values begin (4096 slots in memory, 24 layers on one core: 2.13 ms; with ten 2.66, with none 3.2; 24: as 16).
constexpr int kLinesARow = 16;

// Up to kFewRows rows of numbers.
template <typename Math>
void attend_few(TileRows<Math>& t, Block<Math>& block, const Slots& slots, int64_t begin, Ahead& ahead) {
  Logits found[kFewRows];
  with_few(t.rows, [&](auto products) {
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

// Rows of bytes, kFewRows at a time.
template <typename Math>
void attend_bytes(TileRows<Math>& t, Block<Math>& block, const Slots& slots, int64_t begin, Ahead& ahead) {
  const int lanes = int(padded(block.count));
  ByteScales scales;
  scales.prepare(block.v_scales, lanes);
  Logits found[kFewRows];
  Vec highs[kFewRows] = {};
  ByteSteps steps;
  for (int blocks = (t.rows + kFewRows - 1) / kFewRows, row = 0; blocks > 0; --blocks) {
    const int here = (t.rows - row + blocks - 1) / blocks;
    with_few_bytes(here, [&](auto products) {
      products.scores(t.byte_rows, row, t.a.shape.k_dim, slots.k8, block.k_scales, slots.count, t.scores, kBlock, ahead);
      bool alike = true;
      for (int r = 0; r < here; ++r) {
        prepare_logits(t.a, t.scores + r * kBlock, block.count, begin, t.masks[row + r], t.slopes[row + r], nullptr, found + r);
        alike = alike && found[r].unit == found[0].unit;
      }
      if (alike) products.highs(t.scores, kBlock, lanes, found[0].unit, scales.logs, highs);
      else
        for (int r = 0; r < here; ++r) find_highs<1>(t.scores + r * kBlock, kBlock, lanes, found[r].unit, scales.logs, highs + r);
      steps.rise(highs, here, t.tops + row);
      for (int r = 0; r < here; ++r) {
        ahead.lines(kLinesARow);
        uint8_t* weights = t.byte_rows.weights + r * kBlock;
        const auto weigh = found[r].masked ? weigh_bytes<true> : weigh_bytes<false>;
        const Vec sum = weigh(t.scores + r * kBlock, lanes, found[r].unit, steps.references[r], scales, weights);
        float* total = t.totals + (row + r) * kLanes;
        store(total, fused(load(total), steps.before[r], sum * steps.now[r]));
      }
      float* sums = t.sums + row * t.v_stride;
      products.values(t.byte_rows, kBlock, slots.v8, slots.count, t.a.v_dim, steps, scales.broken, sums, t.v_stride, ahead);
    });
    row += here;
  }
}

}  // namespace
}  // namespace pagoda

#endif
