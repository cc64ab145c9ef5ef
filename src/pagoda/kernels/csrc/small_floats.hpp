// Numbers of sixteen, eight and four bits as floats, one at a time. Registers of them: packed_fields.hpp.
#pragma once

#include <cstdint>
#include <cstring>

namespace pagoda {
namespace {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

inline float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

inline float half_value(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return from_bits(sign | 0x7f800000u | (rest & 0x3ff) << 13);
  // Read as a float with 2^112 times too small an exponent, so that halves below the normal ones come out right too.
  return from_bits(sign | bits_of(from_bits(rest << 13) * 0x1p112f));
}

// Half to even; what is not a number stays none.
inline uint16_t bf16_bits(float x) {
  const uint32_t bits = bits_of(x), rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0 : uint16_t(rounded);
}

// fp8 with four bits of exponent; its only number that is none (all bits but the sign) is refused where weights are laid out.
inline float e4m3_value(uint8_t byte) {
  return from_bits(uint32_t(byte & 0x80) << 24 | bits_of(from_bits(uint32_t(byte & 0x7f) << 20) * 0x1p120f));
}

// To nearest, ties to even, of sizes up to 448.
inline uint8_t e4m3_bits(float x) {
  const uint32_t bits = bits_of(x), size = bits & 0x7fffffffu, sign = bits >> 24 & 0x80;
  if (size < 121u << 23)  // below 2^-6: steps of 2^-9; added to 2^14, which has steps of that size
    return static_cast<uint8_t>(sign | (bits_of(from_bits(size) + 0x1p14f) & 0xf));
  return static_cast<uint8_t>(sign | (((size + 0x7ffffu + (size >> 20 & 1)) >> 20) - (120 << 3)));
}

// nf4: equal shares of a normal distribution (kernels/packed_bytes.py has the same).
alignas(64) constexpr float kNormalLevels[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
    -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

}  // namespace
}  // namespace pagoda
