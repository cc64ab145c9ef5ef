// Floats of 16 bits, opened and rounded without the processor's help.
#pragma once

#include <cstdint>
#include <cstring>

namespace pagoda {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline float half_value(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return from_bits(sign | 0x7f800000u | (rest & 0x3ff) << 13);
  // Read as a float with 2^112 times too small an exponent, so that halves below the normal ones come out right too.
  return from_bits(sign | bits_of(from_bits(rest << 13) * from_bits(239u << 23)));
}

// Half to even; what is not a number stays none.
inline uint16_t bf16_bits(float x) {
  const uint32_t bits = bits_of(x), rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0 : uint16_t(rounded);
}

}  // namespace pagoda
