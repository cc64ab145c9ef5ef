// Many rows against a packed block: a matrix product for six rows at a time, their weights, another product.
#pragma once

#include "attention_tile_rows.hpp"

namespace pagoda {
namespace {

// Adds a packed block's slots to the sums of all rows.
template <typename Math>
void attend_many(TileRows<Math>& t, Block<Math>& block, int64_t begin, Ahead& ahead) {
  const int64_t slots = padded(block.count), slot_words = Block<Math>::words_of(block.count);
  Logits found[kRowsAtOnce];
  for (int blocks = (t.rows + kRowsAtOnce - 1) / kRowsAtOnce, row = 0; blocks > 0; --blocks) {
    const int here = (t.rows - row + blocks - 1) / blocks;  // even shares: 7 rows are 4 + 3, not 6 + 1
    const float* queries = t.queries + row * t.k_words;
    float* sums = t.sums + row * t.v_stride;
    product<Math>(here, queries, t.k_words, block.keys, kBlock, t.k_words, slots, t.scores, kBlock, false, ahead);
    t.rise_all(row, here, begin, block, found);
    for (int r = 0; r < here; ++r) {
      ahead.lines(8);
      t.weigh(row + r, t.scores + r * kBlock, found[r], t.probs + r * kBlock, block);
    }
    product<Math>(here, t.probs, kBlock, block.values, t.v_stride, slot_words, t.v_stride, sums, t.v_stride, true, ahead);
    row += here;
  }
}

}  // namespace
}  // namespace pagoda
