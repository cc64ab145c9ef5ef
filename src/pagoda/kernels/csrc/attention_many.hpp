// Many rows against a packed block: a matrix product for six rows at a time, their weights, another product.
#pragma once

#include "attention_tile_rows.hpp"

namespace pagoda {
namespace {

// Adds a packed block's slots to the sums of all rows, and these to the parts before, if they end one: while they lie in the first cache. Slots behind the last that six rows see are left out: beside the diagonal they
// would be a twentieth of a chunk's work.
template <typename Math>
void attend_many(TileRows<Math>& t, Block<Math>& block, int64_t begin, Ahead& ahead, PartEnd end) {
  Logits found[kRowsAtOnce];
  for (int blocks = (t.rows + kRowsAtOnce - 1) / kRowsAtOnce, row = 0, here; blocks > 0; --blocks, row += here) {
    here = (t.rows - row + blocks - 1) / blocks;  // even shares: 7 rows are 4 + 3, not 6 + 1
    const Seen seen = t.seen(row, here, begin, block.count);
    const int slots = seen.slots;
    const auto keep = [&] { if (end != PartEnd::none) t.keep(row, here, end == PartEnd::kept_first); };
    if (slots == 0) {
      if (!t.has_sums) t.clear_sums(row, here);
      keep();
      continue;
    }
    const float* queries = t.queries + row * t.k_words;
    float* sums = t.sums + row * t.v_stride;
    product<Math>(here, queries, t.k_words, block.keys, kBlock, t.k_words, padded(slots), t.scores, kBlock, false, ahead);
    t.rise(row, here, seen, begin, block, 0, t.scores, found);
    for (int r = 0; r < here; ++r) {
      ahead.lines(8);
      t.weigh(row + r, slots, t.scores + r * kBlock, found[r], t.probs + r * kBlock, block);
    }
    const int64_t words = Block<Math>::words_of(slots);
    product<Math>(here, t.probs, kBlock, block.values, t.v_stride, words, t.v_stride, sums, t.v_stride, t.has_sums, ahead);
    keep();
  }
  t.has_sums = true;
}

}  // namespace
}  // namespace pagoda
