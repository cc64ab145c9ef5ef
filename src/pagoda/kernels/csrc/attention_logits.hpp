// Queries as words, and products of queries and keys as logits: scaled, capped, masked, in units of log2.
#pragma once

#include "attention_math.hpp"
#include "attention_slots.hpp"

namespace pagoda {
namespace {

inline float query_element(const AttentionArgs& a, int64_t at) {
  switch (a.dtype) {
    case Dtype::f32: return ((const float*)a.q)[at];
    case Dtype::bf16: return widen(((const uint16_t*)a.q)[at]);
    default: return half_to_float(((const uint16_t*)a.q)[at]);
  }
}

// A query as `words` words, zeros behind its last.
template <typename Math>
void pack_query(const AttentionArgs& a, int64_t token, int64_t q_head, int64_t words, float* out);

template <>
inline void pack_query<Floats>(const AttentionArgs& a, int64_t token, int64_t q_head, int64_t words, float* out) {
  const int64_t at = token * a.q_token_stride + q_head * a.q_head_stride;
  for (int64_t d = 0; d < a.shape.k_dim; ++d) out[d] = query_element(a, at + d);
  for (int64_t d = a.shape.k_dim; d < words; ++d) out[d] = 0.0f;
}

#if PAGODA_DPBF16
template <>
inline void pack_query<Pairs>(const AttentionArgs& a, int64_t token, int64_t q_head, int64_t words, float* out) {
  const int64_t at = token * a.q_token_stride + q_head * a.q_head_stride, dim = a.shape.k_dim;
  for (int64_t w = dim / 2; w < words; ++w) out[w] = 0.0f;
  memcpy(out, (const uint16_t*)a.q + at, 2 * dim);
}
#endif

struct Mask {
  int64_t first, last;  // slots that the row sees
};

// What rows see of a block: none of them more than its first `slots`; whether each of them sees all of those.
struct Seen {
  int slots;
  bool all;
};

// What became of a row's products: its logits are the numbers there times `unit`, or each times its own of `units`, in units of log2.
struct Logits {
  float unit;
  const float* units = nullptr;
  bool masked;  // some are -inf
  bool alive;   // the row has seen a slot
};

// -inf for those of a row's first `lanes` numbers that are not low..high.
inline void mask_outside(float* s, int64_t lanes, int64_t low, int64_t high) {
  Vec slot;
  for (int i = 0; i < kLanes; ++i) slot[i] = float(i);
  const auto one = [&](int64_t i) {
    const Vec at = slot + splat(float(i));
    store(s + i, select((at >= splat(float(low))) & (at <= splat(float(high))), load(s + i), splat(-kInf)));
  };
  for (int64_t i = 0; i < lanes && i < low; i += kLanes) one(i);
  for (int64_t i = high < 0 ? 0 : (high + 1) / kLanes * kLanes; i < lanes; i += kLanes) one(i);
}

// The weights of the slots of one (sequence, kv-head), for blocks of them.
class BlockWeights {
 public:
  BlockWeights(const AttentionArgs& a, int64_t seq, int64_t head) {
    if (a.weighted(seq)) width_ = a.weights[seq].width, logs_ = a.weights[seq].logs + head * width_;
  }

  bool any() const { return width_ > 0; }

  // Logarithms for slots begin .. begin + count - 1 and up to whole vectors of them, until the next call; null where all count once.
  const float* of(int64_t begin, int count) {
    if (begin >= width_) return nullptr;
    if (begin + padded(count) <= width_) return logs_ + begin;
    const int64_t here = width_ - begin < count ? width_ - begin : count;
    memcpy(own_, logs_ + begin, sizeof(float) * here);
    memset(own_ + here, 0, sizeof(float) * (padded(count) - here));
    return own_;
  }

 private:
  const float* logs_ = nullptr;
  int64_t width_ = 0;
  float own_[kBlock];
};

// Logits of one row over a block, out of the products of query and keys: scaled, capped, weighted (`weights`, or null), masked (-inf).
// Where nothing but the scale and the mask are to be applied, the others stay as they are, so that the mask changes no bit of them.
inline void prepare_logits(const AttentionArgs& a, float* s, int count, int64_t begin, Mask mask, float slope, const float* weights,
                           const float* k_scales, Logits* found) {
  const int64_t low = mask.first - begin, high = mask.last - begin < count - 1 ? mask.last - begin : count - 1;
  const int lanes = int(padded(count));
  const bool masked = low > 0 || high < lanes - 1, plain = a.soft_cap == 0.0f && a.slopes == nullptr && weights == nullptr;
  const float factor = plain ? a.scale * kLog2E : a.scale;
  found->masked = masked, found->unit = 1.0f;
  if (plain && !k_scales && factor > 0.0f) {
    found->unit = factor;
    if (masked) mask_outside(s, lanes, low, high);
    return;
  }
  Vec slot;
  for (int i = 0; i < kLanes; ++i) slot[i] = float(i);
  const Vec from = splat(float(low)), to = splat(float(high)), own = splat(float(mask.last - begin));
  for (int i = 0; i < lanes; i += kLanes, slot += splat(float(kLanes))) {
    Vec x = load(s + i) * factor;
    if (k_scales) x *= load(k_scales + i);
    if (!plain) {
      if (a.soft_cap > 0.0f) x = a.soft_cap * tanh_of(x / a.soft_cap);
      x = fused(slot - own, slope, x);
      if (weights) x += load(weights + i);
      x *= kLog2E;
    }
    if (masked) x = select((slot >= from) & (slot <= to), x, splat(-kInf));
    store(s + i, x);
  }
}

// Maxima of a row's first `lanes` numbers, lane by lane.
inline Vec highs_of(const float* s, int lanes) {
  Vec top = splat(-kInf);
  if (lanes == kSpan) {
#pragma GCC unroll 32
    for (int i = 0; i < kSpan; i += kLanes) top = maximum(load(s + i), top);
  } else {
    for (int i = 0; i < lanes; i += kLanes) top = maximum(load(s + i), top);
  }
  return top;
}

// The same of products that have a unit each.
inline Vec highs_of(const float* s, int lanes, const float* units) {
  Vec top = splat(-kInf);
  for (int i = 0; i < lanes; i += kLanes) top = maximum(load(s + i) * load(units + i), top);
  return top;
}

}  // namespace
}  // namespace pagoda
