// Activations for one instruction set; see rows.hpp. What the reference rounds on the way is rounded here by name, so products and
// sums may be fused between, which norms and rotation (rows_body.cpp) may not.

#include "row_parts.hpp"
#include "rows.hpp"

namespace pagoda {
namespace {

inline Vec sigmoid(Vec x) {
  const Vec high = splat(87.0f), away = maximum(-high, -x);
  return splat(1.0f) / (splat(1.0f) + exponential(select(away > high, high, away)));
}

// The complementary error function of z >= 0: Chebyshev fit of Press et al., Numerical Recipes, 6.2; fractional error below
// 1.2e-7, so that the tail of the GELU keeps its digits (1 - erf would lose them).
inline Vec erfc_of(Vec z) {
  constexpr float kFit[] = {0.17087277f, -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f,
                            -0.18628806f, 0.09678418f, 0.37409196f, 1.00002368f, -1.26551223f};
  const Vec t = splat(1.0f) / (splat(1.0f) + z * 0.5f);
  Vec p = splat(kFit[0]);
  for (int i = 1; i < 10; ++i) p = p * t + splat(kFit[i]);
  return t * exponential(p - z * z);
}

inline Vec gelu(Vec x) {
  const Vec tail = erfc_of(maximum(x, -x) * 0.70710678f) * 0.5f;
  return x * select(x < Vec{}, tail, splat(1.0f) - tail);
}

#if PAGODA_DPBF16

// x * sigmoid(x) within 3e-7, where the result is rounded to bfloat16 (2e-3): e^-x by a minimax polynomial of degree 5 of what is above
// the next whole number below, and a reciprocal of 14 bits with one of Newton's steps instead of a division. A NaN stays one.
inline Vec silu_roughly(Vec x) {
  const __m512 t = _mm512_min_ps((__m512)splat(126.0f), (__m512)(x * -1.44269504f));
  const Vec r = (Vec)_mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // of infinities 0
  Vec p = r * 1.877576675e-3f + splat(8.989340091e-3f);
  p = p * r + splat(5.582631805e-2f);
  p = p * r + splat(2.401536170e-1f);
  p = p * r + splat(6.931530732e-1f);
  p = p * r + splat(9.999999251e-1f);
  const Vec below = (Vec)_mm512_scalef_ps((__m512)p, t) + splat(1.0f), y = (Vec)_mm512_rcp14_ps((__m512)below);
  return x * (y * (splat(2.0f) - below * y));
}

#endif

template <Activation kKind>
inline Vec act(Vec x) {
  if constexpr (kKind == Activation::silu) return x * sigmoid(x);
  if constexpr (kKind == Activation::gelu) return gelu(x);
  if constexpr (kKind == Activation::gelu_tanh)
    return x * 0.5f * (splat(1.0f) + tanh_of((x + x * x * x * 0.044715f) * 0.79788456f));
  if constexpr (kKind == Activation::relu) return maximum(Vec{}, x);
  return x;
}

// Between two operations, and at the end. To bfloat16 in one instruction where there is one: numbers below 2^-126 become zeros then.
template <typename T>
inline Vec between(Vec x) { return rounded<T>(x); }
template <typename T>
inline void put_last(T* p, Vec x, int64_t count) { put(p, x, count); }

#if PAGODA_DPBF16
template <>
inline Vec between<uint16_t>(Vec x) {
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x)), 16);
}
template <>
inline void put_last<uint16_t>(uint16_t* p, Vec x, int64_t count) {
  _mm256_mask_storeu_epi16(p, __mmask16((1u << count) - 1), (__m256i)_mm512_cvtneps_pbh((__m512)x));
}
#endif

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
