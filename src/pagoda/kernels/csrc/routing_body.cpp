// Routers for one instruction set; see routing.hpp. Sums run over lanes in a fixed order, one for every token and expert.

#include "routing.hpp"
#include "row_parts.hpp"

namespace pagoda {
namespace {

template <typename T, int kExperts, int kTokens>
__attribute__((noinline)) void dots(const RouterArgs& a, int64_t token, int64_t expert) {
  const T* const x = static_cast<const T*>(a.x) + token * a.hidden;
  const T* const weight = static_cast<const T*>(a.weight) + expert * a.hidden;
  Vec sums[kExperts][kTokens] = {};
  sweep(0, a.hidden, [&](int64_t i, int64_t n) {
    Vec in[kTokens];
    for (int t = 0; t < kTokens; ++t) in[t] = take(x + t * a.hidden + i, n);
    for (int e = 0; e < kExperts; ++e) {
      __builtin_prefetch(weight + (kExperts + e) * a.hidden + i);  // a row is too short a stream for the hardware to see it coming
      const Vec w = take(weight + e * a.hidden + i, n);
      for (int t = 0; t < kTokens; ++t) sums[e][t] = fused(in[t], w, sums[e][t]);
    }
  });
  for (int e = 0; e < kExperts; ++e)
    for (int t = 0; t < kTokens; ++t) {
      float sum = total(sums[e][t]);
      if (a.bias) sum += widen(static_cast<const T*>(a.bias)[expert + e]);
      if (!a.exact) {
        T half;
        narrow(sum, &half);
        sum = widen(half);
      }
      a.logits[(token + t) * a.experts + expert + e] = sum;
    }
}

template <typename T, int kTokens>
void experts_of(const RouterArgs& a, int64_t token, int64_t expert, int64_t end) {
  constexpr int kSums = kLanes == 16 ? 16 : 8, kExperts = kSums / kTokens;  // that stay in registers beside the operands
  for (; expert + kExperts <= end; expert += kExperts) dots<T, kExperts, kTokens>(a, token, expert);
  for (; expert < end; ++expert) dots<T, 1, kTokens>(a, token, expert);
}

template <typename T>
void router_rows_of(const RouterArgs& a, int64_t token, int64_t end_token, int64_t expert, int64_t end) {
  for (; token + 4 <= end_token; token += 4) experts_of<T, 4>(a, token, expert, end);
  for (; token < end_token; ++token) experts_of<T, 1>(a, token, expert, end);
}

template <typename T>
void gate_rows_of(const GateArgs& a, int64_t first, int64_t end) {
  for (int64_t row = first; row < end; ++row) {
    const Vec scale = rounded<T>(sigmoid(splat(a.logits[row])));
    T* const y = static_cast<T*>(a.y) + row * a.width;
    sweep(0, a.width, [&](int64_t i, int64_t n) { put(y + i, take(y + i, n) * scale, n); });
  }
}

}  // namespace

namespace PAGODA_ISA {

void router_rows(const RouterArgs& a, int64_t token, int64_t end_token, int64_t expert, int64_t end) {
  if (a.dtype == Dtype::f32) router_rows_of<float>(a, token, end_token, expert, end);
  else router_rows_of<uint16_t>(a, token, end_token, expert, end);
}

void softmax_row(float* x, int64_t width) {
  float top = -kInf;
  for (int64_t i = 0; i < width; ++i) top = x[i] > top ? x[i] : top;
  Vec sum{};
  sweep(0, width, [&](int64_t i, int64_t n) {
    Vec y = n == kLanes ? load(x + i) : load_part(x + i, n, -kInf);
    y = exponential(y - splat(top));
    sum += y;
    put(x + i, y, n);
  });
  const Vec whole = splat(total(sum));
  sweep(0, width, [&](int64_t i, int64_t n) { put(x + i, take(x + i, n) / whole, n); });
}

void sigmoid_row(const float* x, float* out, int64_t width) {
  sweep(0, width, [&](int64_t i, int64_t n) { put(out + i, sigmoid(take(x + i, n)), n); });
}

void gate_rows(const GateArgs& a, int64_t first, int64_t end) {
  if (a.dtype == Dtype::f32) gate_rows_of<float>(a, first, end);
  else gate_rows_of<uint16_t>(a, first, end);
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
