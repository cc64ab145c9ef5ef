// SiLU for results in bfloat16, and roundings to it, as activations and products that end in one share them.
#pragma once

#include "row_parts.hpp"

namespace pagoda {
namespace {

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

#if PAGODA_DPBF16

// x * sigmoid(x) within 3e-7, where the result is rounded to bfloat16 (2e-3): e^-x by a minimax polynomial of degree 5 of what is above
// the next whole number below, and a reciprocal of 14 bits with one of Newton's steps instead of a division. A NaN stays one.
inline Vec silu_roughly(Vec x) {
  const __m512 t = _mm512_min_ps((__m512)splat(126.0f), (__m512)(x * -1.44269504f));
  const Vec r = (Vec)_mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // of infinities 0
  Vec p = fused(r, 1.877576675e-3f, 8.989340091e-3f);
  p = fused(p, r, 5.582631805e-2f);
  p = fused(p, r, 2.401536170e-1f);
  p = fused(p, r, 6.931530732e-1f);
  p = fused(p, r, 9.999999251e-1f);
  const Vec below = (Vec)_mm512_scalef_ps((__m512)p, t) + splat(1.0f), y = (Vec)_mm512_rcp14_ps((__m512)below);
  return x * (y * less_fused(below, y, splat(2.0f)));
}

#endif

}  // namespace
}  // namespace pagoda
