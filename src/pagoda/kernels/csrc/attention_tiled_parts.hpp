// What sixteen rows have summed by tiles, [column][16 rows] (attention_tiled.hpp), on its way to a row each; and their queries, turned.
//
// Parts are added up here as rows' are (TileRows::keep).
#pragma once

#include "attention_tile_rows.hpp"

#if PAGODA_AMX

namespace pagoda {
namespace {

// [words of a query][16 rows], for each sixteen rows; those that are none are zeros.
template <typename Math>
void turn_queries(TileRows<Math>& t) {
  for (int first = 0; first < t.rows; first += kRowsTogether) {
    float *const from = t.queries + first * t.k_words, *const to = t.turned + first * t.k_words;
    const char* rows[kLanes];
    for (int r = 0; r < kLanes; ++r) {
      rows[r] = (const char*)(from + r * t.k_words);
      if (first + r >= t.rows) memset(from + r * t.k_words, 0, sizeof(float) * t.k_words);
    }
    for (int64_t w = 0; w < t.k_words; w += kLanes) transpose_tile(rows, w, to + w * kLanes, kLanes);
    t.bounds[first / kRowsTogether] = t.bounds_of(first, t.rows - first < kRowsTogether ? t.rows - first : kRowsTogether);
  }
}

// Denominators of sixteen rows, of what lies in sixteen registers: as total_of() adds lanes.
inline Vec totals_of(const float* totals) {
  Vec sums[kLanes];
  for (int w = 0; w < kLanes; ++w) sums[w] = load(totals + w * kLanes);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int w = 0; w < half; ++w) sums[w] += sums[w + half];
  return sums[0];
}

// Adds this part of sixteen rows to those before it.
template <typename Math>
void keep_part(TileRows<Math>& t, int row, bool first) {
  float *const tops = t.before.tops + row, *const totals = t.before.totals + row, *const sums = t.before.sums + row * t.v_stride;
  const Vec top = load(t.tops + row), total = totals_of(t.totals + row * kLanes);
  const float* const own = t.sums + row * t.v_stride;
  if (first) {
    store(tops, top), store(totals, total), memcpy(sums, own, sizeof(float) * kLanes * t.v_stride);
    return;
  }
  const Vec old = load(tops), high = maximum(top, old);
  const auto factor = [&](Vec of) { return select(of == splat(-kInf), Vec{}, exp2_of(of - high)); };
  const Vec f = factor(old), g = factor(top);
  store(tops, high), store(totals, fused(load(totals), f, total * g));
  for (int64_t c = 0; c < t.v_stride; ++c) store(sums + c * kLanes, fused(load(sums + c * kLanes), f, load(own + c * kLanes) * g));
}

// Sums as rows [row][column]; denominators in the first of a row's lanes.
template <typename Math>
void turn_sums(TileRows<Math>& t, bool kept) {
  for (int row = 0; row < t.rows; row += kRowsTogether) {
    float *const totals = t.totals + row * kLanes, *const tops = t.tops + row, *const to = t.sums + row * t.v_stride;
    const Vec total = kept ? load(t.before.totals + row) : totals_of(totals);
    if (kept) store(tops, load(t.before.tops + row));
    memset(totals, 0, sizeof(float) * kLanes * kLanes);
    for (int r = 0; r < kLanes; ++r) totals[r * kLanes] = total[r];
    const float* from = t.before.sums + row * t.v_stride;
    if (!kept) memcpy(t.turning, to, sizeof(float) * kLanes * t.v_stride), from = t.turning;
    for (int64_t c = 0; c < t.v_stride; c += kLanes) {
      const char* columns[kLanes];
      for (int i = 0; i < kLanes; ++i) columns[i] = (const char*)(from + (c + i) * kLanes);
      transpose_tile(columns, 0, to + c, t.v_stride);
    }
  }
}

}  // namespace
}  // namespace pagoda

#endif
