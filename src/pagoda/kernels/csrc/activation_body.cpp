// Activations for one instruction set; see rows.hpp. What the reference rounds on the way is rounded here by name, so products and
// sums are fused between, which those of norms and rotation (rows_body.cpp) are not.

#include "activation_halves.hpp"
#include "rows.hpp"

namespace pagoda {
namespace {

// The complementary error function of z >= 0: Chebyshev fit of Press et al., Numerical Recipes, 6.2; fractional error below
// 1.2e-7, so that the tail of the GELU keeps its digits (1 - erf would lose them).
inline Vec erfc_of(Vec z) {
  constexpr float kFit[] = {0.17087277f, -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f,
                            -0.18628806f, 0.09678418f, 0.37409196f, 1.00002368f, -1.26551223f};
  const Vec t = splat(1.0f) / fused(z, 0.5f, 1.0f);
  Vec p = splat(kFit[0]);
  for (int i = 1; i < 10; ++i) p = fused(p, t, kFit[i]);
  return t * exponential(less_fused(z, z, p));
}

inline Vec gelu(Vec x) {
  const Vec tail = erfc_of(maximum(x, -x) * 0.70710678f) * 0.5f;
  return x * select(x < Vec{}, tail, splat(1.0f) - tail);
}

template <Activation kKind>
inline Vec act(Vec x) {
  if constexpr (kKind == Activation::silu) return x * sigmoid(x);
  if constexpr (kKind == Activation::gelu) return gelu(x);
  if constexpr (kKind == Activation::gelu_tanh)
    return x * 0.5f * (splat(1.0f) + tanh_of(fused(x * x * x, 0.044715f, x) * 0.79788456f));
  if constexpr (kKind == Activation::relu) return maximum(Vec{}, x);
  return x;
}

template <typename T, typename Function>
inline void apply(const ActivationArgs& a, int64_t row, int64_t first, int64_t end, Function function) {
  const T* const gate = static_cast<const T*>(a.gate) + row * a.row_stride;
  const T* const up = a.up ? static_cast<const T*>(a.up) + row * a.row_stride : nullptr;
  T* const out = static_cast<T*>(a.out) + row * a.out_stride;
  sweep(first, end, [&](int64_t i, int64_t n) {
    Vec y = function(take(gate + i, n));
    if (up) y = between<T>(y) * take(up + i, n);
    put_last(out + i, y, n);
  });
}

template <typename T>
void activation_of(const ActivationArgs& a, int64_t row, int64_t first, int64_t end) {
#if PAGODA_DPBF16
  if (sizeof(T) == 2 && a.kind == Activation::silu) return apply<T>(a, row, first, end, silu_roughly);
#endif
  switch (a.kind) {
    case Activation::silu: return apply<T>(a, row, first, end, [](Vec x) { return act<Activation::silu>(x); });
    case Activation::gelu: return apply<T>(a, row, first, end, [](Vec x) { return act<Activation::gelu>(x); });
    case Activation::gelu_tanh: return apply<T>(a, row, first, end, [](Vec x) { return act<Activation::gelu_tanh>(x); });
    case Activation::relu: return apply<T>(a, row, first, end, [](Vec x) { return act<Activation::relu>(x); });
    case Activation::quick_gelu:
      return apply<T>(a, row, first, end, [](Vec x) { return x * rounded<T>(sigmoid(rounded<T>(x * 1.702f))); });
    case Activation::relu2:
      return apply<T>(a, row, first, end, [](Vec x) { const Vec y = maximum(Vec{}, x); return y * y; });
    case Activation::swiglu_oai: break;
  }
  // g * sigmoid(alpha * g) * (u + 1) with g and u bounded; every step is rounded, as the reference's are.
  const T* const gate = static_cast<const T*>(a.gate) + row * a.row_stride;
  const T* const up = static_cast<const T*>(a.up) + row * a.row_stride;
  T* const out = static_cast<T*>(a.out) + row * a.out_stride;
  const Vec limit = splat(a.limit);
  sweep(first, end, [&](int64_t i, int64_t n) {
    Vec g = take(gate + i, n), u = take(up + i, n);
    g = select(g > limit, limit, g);
    u = select(u > limit, limit, select(u < -limit, -limit, u));
    const Vec swish = rounded<T>(g * rounded<T>(sigmoid(rounded<T>(g * a.alpha))));
    put(out + i, rounded<T>(u + splat(1.0f)) * swish, n);
  });
}

}  // namespace

namespace PAGODA_ISA {

void activation_columns(const ActivationArgs& a, int64_t row, int64_t first, int64_t end) {
  if (a.dtype == Dtype::f32) activation_of<float>(a, row, first, end);
  else activation_of<uint16_t>(a, row, first, end);
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
