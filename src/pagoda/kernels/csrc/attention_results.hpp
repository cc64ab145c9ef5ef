// From sums, maxima and denominators to results: sinks, and the parts of a row merged by them.
#pragma once

#include "attention_block.hpp"
#include "attention_logits.hpp"

namespace pagoda {
namespace {

inline void write_row(const AttentionArgs& a, int64_t token, int64_t q_head, const float* sums, float factor) {
  const int64_t at = (token * a.num_q_heads + q_head) * a.v_dim;
  int64_t d = 0;
  if (a.dtype == Dtype::bf16)
    for (; d + kLanes <= a.v_dim; d += kLanes) store((uint16_t*)a.out + at + d, load(sums + d) * factor);
  for (; d < a.v_dim; ++d) {
    const float x = sums[d] * factor;
    if (a.dtype == Dtype::f32) ((float*)a.out)[at + d] = x;
    else if (a.dtype == Dtype::bf16) narrow(x, (uint16_t*)a.out + at + d);
    else ((uint16_t*)a.out)[at + d] = float_to_half(x);
  }
}

// The sink joins the denominator; a row that saw nothing yields zeros.
inline void finish_row(const AttentionArgs& a, const AttentionScratch& out, int64_t token, int64_t q_head, const float* sums,
                       float top, float total) {
  float factor = total > 0.0f ? 1.0f / total : 0.0f;
  if (a.sinks) {
    const float sink = a.sinks[q_head] * kLog2E, higher = top > sink ? top : sink;
    const float weight = top == -kInf ? 0.0f : exp2_of(top - higher);
    total = fused(total, weight, exp2_of(sink - higher));
    factor = weight / total;
    top = higher;
  }
  write_row(a, token, q_head, sums, factor);
  if (out.norms) {
    out.norms[2 * (token * a.num_q_heads + q_head)] = top;
    out.norms[2 * (token * a.num_q_heads + q_head) + 1] = total > 0.0f ? 1.0f / total : 0.0f;
  }
}

// Calls add(part, whether the sum of kSumParts begins or ends with it) for `count` parts.
template <typename Add>
inline void each_part(int64_t count, Add add) {
  for (int64_t i = 0; i < count; ++i) add(i, i % kSumParts == 0, (i + 1) % kSumParts == 0 || i + 1 == count);
}

// to[0 .. kVectors x kLanes) = a row's columns of `count` parts, `apart` floats from one to the next, each times its weight: weights[part x kLanes].
template <int kVectors>
inline void add_parts(const float* part, int64_t apart, int64_t count, const float* weights, float* to) {
  Vec all[kVectors] = {}, sum[kVectors];
  each_part(count, [&](int64_t i, bool first, bool last) {
    const float weight = weights[i * kLanes];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      if (first) sum[v] = Vec{};
      if (weight != 0.0f) sum[v] = fused(load(part + i * apart + v * kLanes), weight, sum[v]);  // else it saw nothing: what lies there means nothing
      if (last) all[v] += sum[v];
    }
  });
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) store(to + v * kLanes, all[v]);
}

// Adds the parts of each row (kSumParts), each weighted by 2^(its maximum - the common one).
inline void merge_parts(const AttentionArgs& a, const Merge& merge, const AttentionScratch& out) {
  const Parts parts = parts_of(a, out.partials + merge.first, merge.q_end - merge.q_begin, merge.count);
  float* sums = scratch.need(padded(a.v_dim) + merge.count * kLanes);
  float* weights = sums + padded(a.v_dim);  // [part][kLanes rows]
  for (int64_t first = 0; first < parts.rows; first += kLanes) {
    const int64_t here = parts.rows - first < kLanes ? parts.rows - first : kLanes;
    Vec top = splat(-kInf), total{}, sum{};
    for (int64_t i = 0; i < merge.count; ++i) top = maximum(load_some(parts.tops(i) + first, here), top);
    each_part(merge.count, [&](int64_t i, bool begins, bool ends) {
      const Vec own = load_some(parts.tops(i) + first, here), weight = select(own == splat(-kInf), Vec{}, exp2_of(own - top));
      sum = fused(weight, load_some(parts.totals(i) + first, here), begins ? Vec{} : sum);
      if (ends) total += sum;
      store(weights + i * kLanes, weight);
    });
    for (int64_t r = 0; r < here; ++r) {
      const int64_t row = first + r, token = a.q_starts[merge.seq] + merge.q_begin + row / a.group();
      const float* const part = parts.sums(0) + row * a.v_dim;
      const int64_t apart = parts.rows * a.v_dim;
      int64_t d = 0;
      for (; d + 4 * kLanes <= a.v_dim; d += 4 * kLanes) add_parts<4>(part + d, apart, merge.count, weights + r, sums + d);
      for (; d + kLanes <= a.v_dim; d += kLanes) add_parts<1>(part + d, apart, merge.count, weights + r, sums + d);
      for (; d < a.v_dim; ++d) {
        float all = 0.0f, one = 0.0f;
        each_part(merge.count, [&](int64_t i, bool begins, bool ends) {
          if (begins) one = 0.0f;
          if (weights[i * kLanes + r] != 0.0f) one = fused(weights[i * kLanes + r], part[i * apart + d], one);
          if (ends) all += one;
        });
        sums[d] = all;
      }
      finish_row(a, out, token, merge.head * a.group() + row % a.group(), sums, top[r], total[r]);
    }
  }
}

}  // namespace
}  // namespace pagoda
