// Rows of a weight matrix times up to eight tokens, for one instruction set (see attention_body.cpp for the macros).
//
// kRows rows of the weight and kTokens tokens at once: each weight register is used kTokens times after one load, and every
// (row, token) has one sum of its own, so a token's result is the same whoever shares the call.

#include "linear.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

#if PAGODA_DPBF16
constexpr int kStep = 2 * kLanes;  // elements a register holds
typedef __m512bh Operand;
inline Operand operand(const uint16_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
inline Vec multiply_add(Vec sum, Operand a, Operand b) { return (Vec)_mm512_dpbf16_ps((__m512)sum, a, b); }
#else
constexpr int kStep = kLanes;
typedef Vec Operand;
inline Operand operand(const uint16_t* p) { return load(p); }
inline Vec multiply_add(Vec sum, Operand a, Operand b) { return fused(a, b, sum); }
#endif

inline float total(Vec x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float lanes[kLanes], sum = 0.0f;
  store(lanes, x);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  sum = lanes[0];
  return sum;
#endif
}

template <int kRows, int kTokens>
__attribute__((noinline)) void dots(const LinearArgs& a, int64_t row) {
  const uint16_t* weight = a.weight + row * a.weight_stride;
  Vec sum[kRows][kTokens];
  for (int r = 0; r < kRows; ++r)
    for (int t = 0; t < kTokens; ++t) sum[r][t] = Vec{};
  int64_t k = 0;
  for (; k + kStep <= a.inputs; k += kStep) {
    Operand x[kTokens];
    for (int t = 0; t < kTokens; ++t) x[t] = operand(a.x + t * a.inputs + k);
    for (int r = 0; r < kRows; ++r) {
      // The rows after these: a row is too short a stream for the hardware to see it coming.
      __builtin_prefetch(weight + (kRows + r) * a.weight_stride + k);
      const Operand w = operand(weight + r * a.weight_stride + k);
      for (int t = 0; t < kTokens; ++t) sum[r][t] = multiply_add(sum[r][t], w, x[t]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int t = 0; t < kTokens; ++t) {
      float result = total(sum[r][t]);
      for (int64_t i = k; i < a.inputs; ++i)  // not fused: g++ 12 then makes 39 instructions of the 31 of the loop above
        result += widen(weight[r * a.weight_stride + i]) * widen(a.x[t * a.inputs + i]);
      if (a.bias) result += widen(a.bias[row + r]);
      narrow(result, a.out + t * a.outputs + row + r);
    }
}

template <int kTokens>
void rows_of(const LinearArgs& a, int64_t row, int64_t end) {
  constexpr int kSums = kLanes == 16 ? 16 : 8;  // that stay in registers beside the operands
  constexpr int kRows = kTokens == 1 ? kSums / 2 : kSums / kTokens;
  for (; row + kRows <= end; row += kRows) dots<kRows, kTokens>(a, row);
  for (; row < end; ++row) dots<1, kTokens>(a, row);
}

}  // namespace

namespace PAGODA_ISA {

void linear_rows(const LinearArgs& a, int64_t first, int64_t end) {
  switch (a.tokens) {
    case 1: return rows_of<1>(a, first, end);
    case 2: return rows_of<2>(a, first, end);
    case 3: return rows_of<3>(a, first, end);
    case 4: return rows_of<4>(a, first, end);
    case 5: return rows_of<5>(a, first, end);
    case 6: return rows_of<6>(a, first, end);
    case 7: return rows_of<7>(a, first, end);
    case 8: return rows_of<8>(a, first, end);
  }
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
