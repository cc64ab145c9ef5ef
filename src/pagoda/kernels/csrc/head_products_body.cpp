// Products of heads for one instruction set; see head_products.hpp. Sums run over inputs (or over lanes) in a fixed order, one for every result.

#include "head_products.hpp"
#include "row_parts.hpp"

namespace pagoda {
namespace {

constexpr int kSums = kLanes == 16 ? 16 : 8;  // that stay in registers beside the operands

template <typename T>
struct Head {
  const HeadProductArgs& a;
  const T* x;
  const T* weight;
  T* out;

  Head(const HeadProductArgs& args, int64_t head)
      : a(args), x(static_cast<const T*>(a.x) + head * a.x_head), weight(static_cast<const T*>(a.weight) + head * a.rows * a.columns),
        out(static_cast<T*>(a.out) + head * a.out_head) {}

  // Along rows: kRows of them times kTokens tokens.
  template <int kRows, int kTokens>
  void along(int64_t token, int64_t row) const {
    Vec sums[kRows][kTokens] = {};
    sweep(0, a.columns, [&](int64_t i, int64_t n) {
      Vec in[kTokens];
      for (int t = 0; t < kTokens; ++t) in[t] = take(x + (token + t) * a.x_token + i, n);
      for (int r = 0; r < kRows; ++r) {
        const Vec w = take(weight + (row + r) * a.columns + i, n);
        for (int t = 0; t < kTokens; ++t) sums[r][t] = fused(in[t], w, sums[r][t]);
      }
    });
    for (int r = 0; r < kRows; ++r)
      for (int t = 0; t < kTokens; ++t) narrow(total(sums[r][t]), out + (token + t) * a.out_token + row + r);
  }

  // Down columns: kParts registers of them.
  template <int kParts, int kTokens>
  void down(int64_t token, int64_t column, int64_t count) const {
    Vec sums[kParts][kTokens] = {};
    for (int64_t row = 0; row < a.rows; ++row) {
      const T* const w = weight + row * a.columns + column;
      Vec in[kTokens];
      for (int t = 0; t < kTokens; ++t) in[t] = splat(widen(x[(token + t) * a.x_token + row]));
      for (int p = 0; p < kParts; ++p) {
        const Vec v = take(w + p * kLanes, count);
        for (int t = 0; t < kTokens; ++t) sums[p][t] = fused(in[t], v, sums[p][t]);
      }
    }
    for (int p = 0; p < kParts; ++p)
      for (int t = 0; t < kTokens; ++t) put(out + (token + t) * a.out_token + column + p * kLanes, sums[p][t], count);
  }

  template <int kTokens>
  void tokens(int64_t token) const {
    constexpr int kMany = kSums / kTokens;
    if (a.down) {
      int64_t column = 0;
      for (; column + kMany * kLanes <= a.columns; column += kMany * kLanes) down<kMany, kTokens>(token, column, kLanes);
      for (; column < a.columns; column += kLanes) down<1, kTokens>(token, column, a.columns - column < kLanes ? a.columns - column : kLanes);
      return;
    }
    int64_t row = 0;
    for (; row + kMany <= a.rows; row += kMany) along<kMany, kTokens>(token, row);
    for (; row < a.rows; ++row) along<1, kTokens>(token, row);
  }
};

template <typename T>
void run(const HeadProductArgs& a, int64_t head, int64_t token, int64_t end) {
  const Head<T> h(a, head);
  for (; token + 4 <= end; token += 4) h.template tokens<4>(token);
  for (; token < end; ++token) h.template tokens<1>(token);
}

}  // namespace

namespace PAGODA_ISA {

void head_product(const HeadProductArgs& a, int64_t head, int64_t token, int64_t end) {
  if (a.dtype == Dtype::f32) run<float>(a, head, token, end);
  else run<uint16_t>(a, head, token, end);
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
