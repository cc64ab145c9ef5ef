// Many rows against a packed block by AMX: sixteen rows at a time are a tile, and so are sixteen words of keys or values (tiles.hpp).
#pragma once

#include "attention_tile_rows.hpp"

#if PAGODA_AMX

#include "attention_tile_products.hpp"

namespace pagoda {
namespace {

// Adds a packed block's slots to the sums of all rows.
template <typename Math>
void attend_tiles(TileRows<Math>& t, Block<Math>& block, int64_t begin, Ahead& ahead) {
  Logits found[kRowsTogether];
  const PageShape& p = t.a.shape;  // of the next block's lines, what is due beside each sixteen rows
  const int lines = int(kBlock * p.page_bytes / p.page_size / 64 / ((t.rows + kRowsTogether - 1) / kRowsTogether)) + 1;
  for (int row = 0; row < t.rows; row += kRowsTogether) {
    const int here = t.rows - row < kRowsTogether ? t.rows - row : kRowsTogether;
    const Seen seen = t.seen(row, here, begin, block.count);
    float* const sums = t.sums + row * t.v_stride;
    if (seen.slots == 0) {
      if (!t.has_sums) t.clear_sums(row, here);
      continue;
    }
    ahead.lines(lines);
    const int64_t lanes = padded(seen.slots), words = (lanes / 2 + kTileWords - 1) / kTileWords * kTileWords;
    tile_product(t.queries + row * t.k_words, t.k_words, block.keys, kBlock, t.k_words, lanes, t.scores, kBlock, false);
    for (int r = 0; r < here; r += 8)
      t.rise(row + r, here - r < 8 ? here - r : 8, seen, begin, block, t.scores + r * kBlock, found + r);
    for (int r = 0; r < here; ++r) {
      float* const weights = t.probs + r * kBlock;
      t.weigh(row + r, seen.slots, t.scores + r * kBlock, found[r], weights, block);
      memset(weights + lanes / 2, 0, sizeof(float) * (words - lanes / 2));
    }
    tile_product(t.probs, kBlock, block.values, t.v_stride, words, t.v_stride, sums, t.v_stride, t.has_sums);
  }
  t.has_sums = true;
}

}  // namespace
}  // namespace pagoda

#endif
