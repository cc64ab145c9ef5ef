// Products of tiles, a few at a time, between the weights of sixteen rows (attention_tiled.hpp): the next rows' logits first, so that their
// maxima are known when their turn comes, then the last rows' sums.
//
// A core has few registers behind the names of tiles, and its vectors wait with what finds none: products come one by one, each with the load
// that it needs, rather than in bursts, and what a tile has summed is stored when the next one is under way. (16 rows and 64 slots of a shared
// beginning, one core, quiet: 400 ns with a step of six instructions after every eighth register of weights and logits that ended with the
// step, 370 with these logits first, 345 with one instruction or two after each register.)
#pragma once

#include "attention_tile_rows.hpp"

#if PAGODA_AMX

#include "attention_tile_products.hpp"

namespace pagoda {
namespace {

constexpr int kGroups = kSpan / kLanes;  // of sixteen slots, of a span
constexpr int kSteps = 2 * kGroups;      // of a span's products, or one after each
constexpr int kTurns = kSpan / 2;        // of a span's registers of weights, two slots each

// What sixteen rows meet: logits of `groups` groups of slots.
struct NextLogits {
  const char* const* keys = nullptr;
  int64_t key_words = 0;  // from one slot's to the next
  const float* queries = nullptr;
  float* logits = nullptr;
  int groups = 0;
};

// Sums of sixteen rows, to which `pairs` pairs of groups are added.
struct LastSums {
  const float *weights = nullptr, *values = nullptr;
  float* sums = nullptr;
  int pairs = 0;
  bool begun = false;  // else what lies in `sums` means nothing yet
};

// Registers: 0 and 3 logits, 1 and 2 queries, 4 sums, 5 keys or values, 6 and 7 weights.
struct TileSteps {
  const int64_t k_words, v_stride;
  NextLogits next;
  LastSums last;
  Vec highs[2];  // of the next logits

  void start(const NextLogits& logits, const LastSums& sums) {
    next = logits, last = sums;
    highs[0] = highs[1] = splat(-kInf);
    if (next.groups > 0 && few_words()) {
      load_tile<1>(next.queries, kLanes);
      if (k_words > kTileWords) load_tile<2>(next.queries + kTileWords * kLanes, kLanes);
    }
  }

  // All of it.
  void all() {
    for (int i = 0; i < kSteps; ++i) step(i);
  }

  // ---- in kSteps parts, whatever the shape -----------------------------------------------------------------------------

  void step(int i) {
    if (i < next.groups) i % 2 ? multiply_keys<3>(i) : multiply_keys<0>(i);
    if (i > 0 && i <= next.groups) i % 2 ? store_tile<0>(logits(i - 1), kLanes) : store_tile<3>(logits(i - 1), kLanes);
    if (i > 1 && i <= next.groups + 1) find_highs(i - 2);
    if (i < kSteps - kGroups || last.pairs == 0) return;
    if (i == kSteps - kGroups) load_weights<6>(0);
    if (i == kSteps - kGroups && last.pairs > 1) load_weights<7>(1);
    const int done = i - (kSteps - kGroups), columns = int(v_stride / kLanes);
    for (int c = columns * done / kGroups; c < columns * (done + 1) / kGroups; ++c) add_values(c);
  }

  // ---- in kTurns parts, where queries are two tiles of words, values four of columns, and all of a span is there -------

  bool even() const {
    return k_words == 2 * kTileWords && v_stride == 4 * kLanes && (next.groups == 0 || next.groups == kGroups) &&
           (last.pairs == 0 || last.pairs == kGroups / 2);
  }

  __attribute__((always_inline)) void turn(int i) {
    if (next.groups > 0) turn_keys(i / 6, i % 6, i);
    if (last.pairs > 0) turn_values((i - 1) / 7, (i - 1) % 7, i);
  }

 private:
  bool few_words() const { return k_words <= 2 * kTileWords; }
  float* logits(int group) const { return next.logits + group * (kLanes * kLanes); }
  const float* keys(int group) const { return (const float*)next.keys[group]; }

  template <int kTile>
  void multiply_keys(int group) const {
    zero_tile<kTile>();
    if (few_words()) {
      load_tile<5>(keys(group), next.key_words);
      add_pairs<kTile, 5, 1>();
      if (k_words == kTileWords) return;
      load_tile<5>(keys(group) + kTileWords, next.key_words);
      return add_pairs<kTile, 5, 2>();
    }
    for (int64_t w = 0; w < k_words; w += kTileWords) {
      load_tile<5>(keys(group) + w, next.key_words);
      load_tile<1>(next.queries + w * kLanes, kLanes);
      add_pairs<kTile, 5, 1>();
    }
  }

  // Of sixteen columns.
  void add_values(int column) const {
    begin_sums(column);
    add_half<6>(column, 0);
    if (last.pairs > 1) add_half<7>(column, 1);
    store_tile<4>(sums(column), kLanes);
  }

  float* sums(int column) const { return last.sums + column * (kLanes * kLanes); }
  void begin_sums(int column) const {
    if (last.begun) load_tile<4>(sums(column), kLanes);
    else zero_tile<4>();
  }
  // Not before they are needed: the last of them have just been written.
  template <int kTile>
  void load_weights(int half) const {
    load_tile<kTile>(last.weights + half * (kLanes * kLanes), kLanes);
  }
  template <int kWeights>
  void add_half(int column, int half) const {
    load_tile<5>(last.values + (half * v_stride + column * kLanes) * kLanes, kLanes);
    add_pairs<4, 5, kWeights>();
  }

  __attribute__((always_inline)) void turn_keys(int group, int at, int i) {
    if (group < kGroups && at == 0) group % 2 ? begin_logits<3>(group) : begin_logits<0>(group);
    if (group < kGroups && at == 2) group % 2 ? end_logits<3>(group) : end_logits<0>(group);
    if (group < kGroups && at == 5) group % 2 ? store_tile<3>(logits(group), kLanes) : store_tile<0>(logits(group), kLanes);
    if (i >= 8 && (i - 8) % 6 == 0 && (i - 8) / 6 < kGroups) find_highs((i - 8) / 6);
  }
  template <int kTile>
  void begin_logits(int group) const {
    zero_tile<kTile>();
    load_tile<5>(keys(group), next.key_words);
    add_pairs<kTile, 5, 1>();
  }
  template <int kTile>
  void end_logits(int group) const {
    load_tile<5>(keys(group) + kTileWords, next.key_words);
    add_pairs<kTile, 5, 2>();
  }

  __attribute__((always_inline)) void turn_values(int column, int at, int i) const {
    if (i == kTurns - 1) return store_tile<4>(sums(3), kLanes);
    if (i == 0 || column > 3) return;
    if (at == 0 && column > 0) store_tile<4>(sums(column - 1), kLanes);
    if (at == 0) begin_sums(column);
    if (at == 2 && column == 0) load_weights<6>(0);
    if (at == 2) add_half<6>(column, 0);
    if (at == 4 && column == 0) load_weights<7>(1);
    if (at == 4) add_half<7>(column, 1);
  }

  void find_highs(int group) {
    const float* const at = logits(group);
    Vec x = highs[0], y = highs[1];
#pragma GCC unroll 8
    for (int j = 0; j < kLanes; j += 2) x = maximum(load(at + j * kLanes), x), y = maximum(load(at + (j + 1) * kLanes), y);
    highs[0] = x, highs[1] = y;
  }
};

}  // namespace
}  // namespace pagoda

#endif
