// Many rows against a packed block: a matrix product for six rows at a time, their weights, another product.
#pragma once

#include "attention_tile_rows.hpp"

namespace pagoda {
namespace {

// How many of a block's first slots any of `count` rows from `row` on sees, 0 where none sees one.
template <typename Math>
int slots_seen(const TileRows<Math>& t, int row, int count, int64_t begin, int slots) {
  int64_t first = t.masks[row].first, last = t.masks[row].last;
  for (const Mask* m = t.masks + row + 1; m < t.masks + row + count; ++m)
    first = m->first < first ? m->first : first, last = m->last > last ? m->last : last;
  const int64_t seen = last - begin + 1 < slots ? last - begin + 1 : slots;
  return first - begin < seen && seen > 0 ? int(seen) : 0;
}

// Adds a packed block's slots to the sums of all rows. Slots behind the last that six rows see are left out: beside the diagonal they
// would be a twentieth of a chunk's work.
template <typename Math>
void attend_many(TileRows<Math>& t, Block<Math>& block, int64_t begin, Ahead& ahead) {
  Logits found[kRowsAtOnce];
  for (int blocks = (t.rows + kRowsAtOnce - 1) / kRowsAtOnce, row = 0, here; blocks > 0; --blocks, row += here) {
    here = (t.rows - row + blocks - 1) / blocks;  // even shares: 7 rows are 4 + 3, not 6 + 1
    const int slots = slots_seen(t, row, here, begin, block.count);
    if (slots == 0) continue;
    const float* queries = t.queries + row * t.k_words;
    float* sums = t.sums + row * t.v_stride;
    product<Math>(here, queries, t.k_words, block.keys, kBlock, t.k_words, padded(slots), t.scores, kBlock, false, ahead);
    t.rise(row, here, slots, begin, block, found);
    for (int r = 0; r < here; ++r) {
      ahead.lines(8);
      t.weigh(row + r, slots, t.scores + r * kBlock, found[r], t.probs + r * kBlock, block);
    }
    const int64_t words = Block<Math>::words_of(slots);
    product<Math>(here, t.probs, kBlock, block.values, t.v_stride, words, t.v_stride, sums, t.v_stride, true, ahead);
  }
}

}  // namespace
}  // namespace pagoda
