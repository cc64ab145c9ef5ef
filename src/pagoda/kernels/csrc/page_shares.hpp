// Shares of a softmax over slots, for one instruction set.
#pragma once

#include "attention_math.hpp"

namespace pagoda {
namespace {

// 2^x within 3e-6, which ranks pages as well as an exact one; 0 for what is far below, 2^126 at least for what is above.
inline Vec share_of(Vec x) {
#if defined(__AVX512DQ__)
  const Vec r = (Vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // of what is above the next whole number below
  Vec p = fused(r, 1.353416799e-2f, 5.201146100e-2f);
  p = fused(p, r, 2.414427562e-1f);
  p = fused(p, r, 6.930038347e-1f);
  p = fused(p, r, 1.000002593f);
  return (Vec)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
  return exp2_of(-maximum(splat(-126.0f), -x));
#endif
}

}  // namespace
}  // namespace pagoda
