// Rows of a page as numbers: what each way of storing elements (page_shape.hpp) means. int8 and fp8 codes are widened as they
// are; their scale, one a slot, is multiplied into scores and probabilities instead. int4 has scales by group and is decoded.
#pragma once

#include "page_shape.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

inline float half_to_float(uint16_t bits) {
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#else
  const uint32_t sign = uint32_t(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
  uint32_t out;
  float value;
  if (rest >= 0x7c00u) out = sign | 0x7f800000u | (rest & 0x3ffu) << 13;  // inf and nan
  else if (rest >= 0x400u) out = sign | ((rest << 13) + (112u << 23));
  else {  // 0 and numbers below 2^-14: rest * 2^-24
    value = float(rest) * 5.9604644775390625e-8f;
    memcpy(&out, &value, 4);
    out |= sign;
  }
  memcpy(&value, &out, 4);
  return value;
#endif
}

inline uint16_t float_to_half(float value) {  // to nearest, ties to even
#if defined(__F16C__)
  return _cvtss_sh(value, 0);
#else
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return sign | 0x7e00u;
  if (bits >= 0x477ff000u) return sign | 0x7c00u;  // rounds to 65536 or more
  if (bits < 0x38800000u) {                        // below 2^-14: a multiple of 2^-24
    memcpy(&value, &bits, 4);
    value += 0.5f;  // the addition rounds at 2^-24
    memcpy(&bits, &value, 4);
    return sign | uint16_t(bits - 0x3f000000u);
  }
  bits += 0xfffu + ((bits >> 13) & 1u);
  return sign | uint16_t((bits - (112u << 23)) >> 13);
#endif
}

inline float bf16_to_float(uint16_t bits) { return widen(bits); }

inline void widen_row(Store store, const char* row, const char* scales, int64_t dim, float* out) {
  switch (store) {
    case Store::f32:
      memcpy(out, row, 4 * dim);
      return;
    case Store::bf16: {
      const uint16_t* in = (const uint16_t*)row;
      int64_t d = 0;
      for (; d + kLanes <= dim; d += kLanes) pagoda::store(out + d, load(in + d));
      for (; d < dim; ++d) out[d] = widen(in[d]);
      return;
    }
    case Store::f16: {
      const uint16_t* in = (const uint16_t*)row;
      int64_t d = 0;
#if defined(__AVX512F__)
      for (; d + 16 <= dim; d += 16) _mm512_storeu_ps(out + d, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(in + d))));
#elif defined(__F16C__)
      for (; d + 8 <= dim; d += 8) _mm256_storeu_ps(out + d, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(in + d))));
#endif
      for (; d < dim; ++d) out[d] = half_to_float(in[d]);
      return;
    }
    default:
      (void)scales;
      __builtin_trap();
  }
}

}  // namespace
}  // namespace pagoda
