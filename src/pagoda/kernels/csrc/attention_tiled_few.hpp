// Up to sixteen rows (a decode step) against slots where they lie, by AMX. Keys are rows of words in a page, as a tile's A is, so none are
// transposed: sixteen slots' products with all rows are one tile, which is turned instead. Values are interleaved, as B wants them.
//
//   logits, turned [16 slots][16 rows] = keys of 16 slots [16][words] x queries, turned [words][16 rows]
//
// An element's products are summed in the same order whichever factor is A: these bits are those of many rows (attention_tiled.hpp).
//
// What vectors do lies beside products: interleaving half of 64 slots' values and turning logits beside those of keys, the other half's values
// between the rows that are weighed. So slots are read evenly, and memory is asked for the next ones evenly. Interleaved values lie in 8 KB that
// are used again and sums of up to 64 columns stay in registers for a block, so that little drives slots out of the first cache. (4096 slots in
// memory, 24 layers, two cores: 2.9 to 3.0 ms where a block's 128 slots were multiplied, weighed and summed one after the other, 2.6 to 2.8 so.)
//
// The sums' columns lie as unpacking by quarters leaves them, which takes a third of the shuffles that their own order would.
#pragma once

#include "attention_tile_rows.hpp"

#if PAGODA_AMX

#include "attention_tile_products.hpp"

namespace pagoda {
namespace {

// Lines asked for beside two slots' values, sixteen slots' keys, the turning of their logits, the search for maxima, a row's weights, and the
// product of 32 slots' weights and values: spread evenly, since a core that has asked for some 48 waits, and one that has asked for none
// leaves memory idle. (4096 slots in memory, 24 layers on one core, ms: 5.1 with a quarter of a block's lines left to its end, 4.6 so.)
constexpr int kLinesAPair = 4, kLinesAKey = 8, kLinesATurn = 8, kLinesARise = 8, kLinesAWeight = 6, kLinesAProduct = 8;

constexpr int64_t kUnpacked = 32;  // columns that are unpacked together

// Sixteen slots' words of up to eight rows, [16][16] -> [rows][to the next row: ldo].
inline void turn_eight(const float* from, int rows, float* to, int64_t ldo) {
  __m512 words[8];
  transpose_eight(from, words);
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r)
    if (r < rows) store(to + r * ldo, (Vec)words[r]);
}

inline void turn_sixteen(const float* from, int rows, float* to, int64_t ldo) {
  const char* at[kLanes];
  for (int i = 0; i < kLanes; ++i) at[i] = (const char*)(from + i * kLanes);
  __m512 words[kLanes];
  transpose_words(at, 0, words);
  for (int r = 0; r < rows; ++r) store(to + r * ldo, (Vec)words[r]);
}

// Registers: 0 to 3 sums of up to 64 columns, 4 logits and weights, 5 and 6 queries, 7 keys and values.
template <typename Math>
struct FewTiled {
  TileRows<Math>& t;
  Block<Math>& block;
  const Slots& slots;
  const int64_t begin;
  Ahead& ahead;
  const int v_tiles = int(t.v_stride / kLanes);
  const bool few_words = t.k_words <= 2 * kTileWords;  // of a query, which stays in registers
  const bool few_columns = v_tiles <= 4;               // whose sums do

  void run() {
    if (few_words) {
      load_tile<5>(t.turned, kLanes);
      if (t.k_words > kTileWords) load_tile<6>(t.turned + kTileWords * kLanes, kLanes);
    }
    if (few_columns) load_sums(0);
    for (int from = 0; from < block.count; from += kSpan) span(from, block.count - from < kSpan ? block.count - from : kSpan);
    if (few_columns) store_sums(0);
  }

  // `count` slots from number `from` of the block on.
  void span(int from, int count) {
    float *const logits = t.scores + from, *const weights = t.probs + from / 2;
    const int first = from / kLanes, tiles = int(padded(count)) / kLanes, halves = (tiles + 1) / 2;
    for (int i = 0; i < tiles; ++i) {
      multiply_keys(first + i);
      interleave(first, kLanes * i / tiles, kLanes * (i + 1) / tiles, block.values);
      store_tile<4>(corner(first + i), kLanes);
      if (i) turn(first + i - 1);
    }
    turn(first + tiles - 1);
    ahead.lines<kLinesARise>();
    Logits found[kRowsTogether];
    const Seen seen = t.seen(0, t.rows, begin + from, count), all{count, seen.all && seen.slots == count};
    for (int r = 0; r < t.rows; r += 8)
      t.rise(r, t.rows - r < 8 ? t.rows - r : 8, all, begin + from, block, from, logits + r * kBlock, found + r, Held{*this});
    for (int r = 0; r < t.rows; ++r) {
      ahead.lines<kLinesAWeight>();
      t.weigh(r, count, logits + r * kBlock, found[r], weights + r * kBlock, block, from);
      if (halves == 2) interleave(first + 2, kLanes * r / t.rows, kLanes * (r + 1) / t.rows, block.values + kLanes * t.v_stride);
    }
    if (few_columns) return add_values(weights, 0, halves);
    for (int at = 0; at < v_tiles; at += 4) load_sums(at), add_values(weights, at, halves), store_sums(at);
  }

  // ---- products --------------------------------------------------------------------------------------------------------

  void multiply_keys(int64_t tile) {
    const int64_t stride = slots.k8.stride / 4;
    const float* const keys = (const float*)keys_of(tile, t.last_keys);
    zero_tile<4>();
    if (few_words) {
      load_tile<7>(keys, stride);
      add_pairs<4, 7, 5>();
      ahead.lines<kLinesAKey>();
      if (t.k_words == kTileWords) return;
      load_tile<7>(keys + kTileWords, stride);
      return add_pairs<4, 7, 6>();
    }
    for (int64_t w = 0; w < t.k_words; w += kTileWords) {
      load_tile<5>(t.turned + w * kLanes, kLanes);
      load_tile<7>(keys + w, stride);
      add_pairs<4, 7, 5>();
      ahead.lines<kLinesAKey / 2>();
    }
  }

  // Up to four tiles of columns from number `at` on.
  void add_values(const float* weights, int at, int halves) {
    for (int half = 0; half < halves; ++half) {
      const float* const values = block.values + half * kLanes * t.v_stride + at * kLanes;
      load_tile<4>(weights + half * kLanes, kBlock);
      const int tiles = v_tiles - at;
      add_column<0>(values, tiles), add_column<1>(values, tiles);
      ahead.lines<kLinesAProduct>();
      add_column<2>(values, tiles), add_column<3>(values, tiles);
    }
  }

  template <int kTile>
  void add_column(const float* values, int tiles) const {
    if (kTile >= tiles) return;
    load_tile<7>(values + kTile * kLanes, t.v_stride);
    add_pairs<kTile, 4, 7>();
  }

  void load_sums(int at) const {
    const float* const from = t.sums + at * kLanes;
    const int tiles = v_tiles - at;
    load_tile<0>(from, t.v_stride);
    if (tiles > 1) load_tile<1>(from + kLanes, t.v_stride);
    if (tiles > 2) load_tile<2>(from + 2 * kLanes, t.v_stride);
    if (tiles > 3) load_tile<3>(from + 3 * kLanes, t.v_stride);
  }

  void store_sums(int at) const {
    float* const to = t.sums + at * kLanes;
    const int tiles = v_tiles - at;
    store_tile<0>(to, t.v_stride);
    if (tiles > 1) store_tile<1>(to + kLanes, t.v_stride);
    if (tiles > 2) store_tile<2>(to + 2 * kLanes, t.v_stride);
    if (tiles > 3) store_tile<3>(to + 3 * kLanes, t.v_stride);
  }

  struct Held {  // sums, for rows whose maxima move
    const FewTiled& few;
    void bring() const { if (few.few_columns) few.store_sums(0); }
    void fetch() const { if (few.few_columns) few.load_sums(0); }
  };

  // ---- what vectors do -------------------------------------------------------------------------------------------------

  void turn(int64_t tile) {
    ahead.lines<kLinesATurn>();
    if (t.rows <= 8) turn_eight(corner(tile), t.rows, t.scores + tile * kLanes, kBlock);
    else turn_sixteen(corner(tile), t.rows, t.scores + tile * kLanes, kBlock);
  }

  float* corner(int64_t tile) const { return t.corners + tile % 2 * (kLanes * kLanes); }

  // Sixteen slots' keys lie in one page, but for the last ones, behind which zeros do.
  const char* keys_of(int64_t tile, float* space) {
    const char *first = slots.k8.at[2 * tile], *second = slots.k8.at[2 * tile + 1];
    const int64_t bytes = kEight * slots.k8.stride;
    if (second == first + bytes) return first;
    memcpy(space, first, bytes), memcpy((char*)space + bytes, second, bytes);
    return (const char*)space;
  }

  // Values of two tiles' slots, each beside that of the other tile: pairs first..end of sixteen. A second tile that is not there is zeros.
  void interleave(int64_t tile, int first, int end, float* to) {
    const bool unpacked = t.unpacked(), two = 2 * tile + 2 < padded(slots.count) / kEight;
    if (!two && first == 0) memset(t.turning, 0, sizeof(float) * t.v_stride);
    const int64_t stride = slots.v8.stride;
    for (int j = first; j < end; ++j) {
      ahead.lines<kLinesAPair>();
      const int64_t eight = 2 * tile + j / kEight, inside = j % kEight * stride;
      const uint16_t* const x = (const uint16_t*)(slots.v8.at[eight] + inside);
      const uint16_t* const y = two ? (const uint16_t*)(slots.v8.at[eight + 2] + inside) : (const uint16_t*)t.turning;
      if (unpacked) unpack_value_pair(x, y, t.a.v_dim, to + j * t.v_stride);
      else pack_value_pair(x, y, t.a.v_dim, t.v_stride, to + j * t.v_stride);
    }
  }

  static void unpack_value_pair(const uint16_t* first, const uint16_t* second, int64_t columns, float* to) {
    for (int64_t c = 0; c < columns; c += kUnpacked) {
      const __m512i x = _mm512_loadu_si512(first + c), y = _mm512_loadu_si512(second + c);
      _mm512_storeu_si512(to + c, _mm512_unpacklo_epi16(x, y));
      _mm512_storeu_si512(to + c + kLanes, _mm512_unpackhi_epi16(x, y));
    }
  }
};

template <typename Math>
void attend_few_tiles(TileRows<Math>& t, Block<Math>& block, const Slots& slots, int64_t begin, Ahead& ahead) {
  FewTiled<Math>{t, block, slots, begin, ahead}.run();
}

}  // namespace
}  // namespace pagoda

#endif
