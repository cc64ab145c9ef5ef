// Up to sixteen rows (a decode step) against slots where they lie, by AMX. Keys are rows of words in a page, as a tile's A is, so none are
// transposed: sixteen slots' products with all rows are one tile, which is turned instead. Values are interleaved, as B wants them.
//
//   logits, turned [16 slots][16 rows] = keys of 16 slots [16][words] x queries, turned [words][16 rows]
//
// An element's products are summed in the same order whichever factor is A: these bits are those of many rows (attention_tiled.hpp).
#pragma once

#include "attention_tile_rows.hpp"

#if PAGODA_AMX

#include "attention_tile_products.hpp"

namespace pagoda {
namespace {

// Lines asked for beside sixteen slots' products, while a row is weighed, and beside two slots' values.
constexpr int kLinesATile = 24, kLinesAWeight = 16, kLinesAPair = 3;

template <typename Math>
struct FewTiled {
  TileRows<Math>& t;
  Block<Math>& block;
  const Slots& slots;
  const int64_t begin;
  Ahead& ahead;

  int64_t tiles() const { return padded(slots.count) / kLanes; }

  void run() {
    scores();
    Logits found[kRowsTogether];
    const Seen seen = t.seen(0, t.rows, begin, block.count), all{block.count, seen.all && seen.slots == block.count};
    for (int r = 0; r < t.rows; r += 8) t.rise(r, t.rows - r < 8 ? t.rows - r : 8, all, begin, block, t.scores + r * kBlock, found + r);
    const int64_t lanes = padded(slots.count), words = (lanes / 2 + kTileWords - 1) / kTileWords * kTileWords;
    for (int r = 0; r < t.rows; ++r) {
      ahead.lines(kLinesAWeight);
      float* const weights = t.probs + r * kBlock;
      t.weigh(r, slots.count, t.scores + r * kBlock, found[r], weights, block);
      memset(weights + lanes / 2, 0, sizeof(float) * (words - lanes / 2));
    }
    interleave(words);
    tile_product(t.probs, kBlock, block.values, t.v_stride, words, t.v_stride, t.sums, t.v_stride, true);
  }

  // A tile is turned while the next one is multiplied.
  void scores() {
    for (int64_t i = 0; i < tiles(); i += 2) {
      multiply<0>(i);
      if (i) turn(i - 1);
      if (i + 1 < tiles()) multiply<1>(i + 1);
      turn(i);
    }
    if (tiles() % 2 == 0) turn(tiles() - 1);
  }

  template <int kTile>
  void multiply(int64_t tile) {
    ahead.lines(kLinesATile);
    const float* const keys = (const float*)keys_of(tile);
    const int64_t stride = slots.k8.stride / 4;
    zero_tile<kTile>();
    for (int64_t w = 0; w < t.k_words; w += kTileWords) {
      load_tile<4>(keys + w, stride);
      load_tile<5>(t.turned + w * kLanes, kLanes);
      add_pairs<kTile, 4, 5>();
    }
    store_tile<kTile>(corner(tile), kLanes);
  }

  float* corner(int64_t tile) const { return t.corners + tile % 2 * (kLanes * kLanes); }

  // Sixteen slots' keys lie in one page, but for the last ones, behind which zeros do.
  const char* keys_of(int64_t tile) {
    const char *first = slots.k8.at[2 * tile], *second = slots.k8.at[2 * tile + 1];
    const int64_t bytes = kEight * slots.k8.stride;
    if (second == first + bytes) return first;
    memcpy(t.last_keys, first, bytes), memcpy((char*)t.last_keys + bytes, second, bytes);
    return (const char*)t.last_keys;
  }

  void turn(int64_t tile) {
    const char* rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = (const char*)(corner(tile) + i * kLanes);
    __m512 words[kLanes];
    transpose_words(rows, 0, words);
    for (int r = 0; r < t.rows; ++r) store(t.scores + r * kBlock + tile * kLanes, (Vec)words[r]);
  }

  void interleave(int64_t words) {
    float* to = block.values;
    for (int64_t e = 0; e < 2 * tiles(); ++e) {
      const char* row = slots.v8.at[e];
      for (int64_t j = 0; j < kEight; j += 2, row += 2 * slots.v8.stride, to += t.v_stride) {
        ahead.lines(kLinesAPair);
        pack_value_pair((const uint16_t*)row, (const uint16_t*)(row + slots.v8.stride), t.a.v_dim, t.v_stride, to);
      }
    }
    memset(to, 0, sizeof(float) * (words * t.v_stride - (to - block.values)));
  }
};

template <typename Math>
void attend_few_tiles(TileRows<Math>& t, Block<Math>& block, const Slots& slots, int64_t begin, Ahead& ahead) {
  FewTiled<Math>{t, block, slots, begin, ahead}.run();
}

// [words of a query][16 rows], for the keys' tiles.
template <typename Math>
void turn_queries(TileRows<Math>& t) {
  const char* rows[kLanes];
  for (int r = 0; r < kLanes; ++r) rows[r] = (const char*)(t.queries + r * t.k_words);
  for (int64_t w = 0; w < t.k_words; w += kLanes) transpose_tile(rows, w, t.turned + w * kLanes, kLanes);
}

}  // namespace
}  // namespace pagoda

#endif
