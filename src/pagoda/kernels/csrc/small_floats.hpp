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

inline float bf16_value(uint16_t half) { return from_bits(uint32_t{half} << 16); }

// Half to even; what is not a number stays none.
inline uint16_t bf16_bits(float x) {
  const uint32_t bits = bits_of(x), rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0 : uint16_t(rounded);
}

// fp8 with four bits of exponent (arXiv:2209.05433), moved under a float's, whose bias is 2^120 larger; that holds below 2^-6 as well.
// Its only number that is none (all bits but the sign) is refused where weights are laid out.
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

// bfloat16 of a whole number of at most eight bits and a sign, exact.
constexpr uint16_t small_bf16(int value) {
  const int size = value < 0 ? -value : value;
  int exponent = 0;
  while (size >> (exponent + 1)) ++exponent;
  if (size == 0) return 0;
  return static_cast<uint16_t>((value < 0 ? 0x8000 : 0) | (127 + exponent) << 7 | ((size << (7 - exponent)) & 127));
}

// bfloat16 of what 0..127 are in e4m3, exact: below 8 the exponent is that of 8, and there is no leading one.
constexpr uint16_t e4m3_bf16(int code) {
  if (code >= 8) return static_cast<uint16_t>(((code >> 3) + 120) << 7 | (code & 7) << 4);
  return static_cast<uint16_t>(code == 0 ? 0 : small_bf16(code) - (9 << 7));
}

// The two bytes of the bfloat16 that 0..127 stand for: codes without their sign are looked up in registers.
struct CodeTable {
  alignas(64) uint8_t low[128], high[128];
};

template <typename Of>
constexpr CodeTable table_of(Of of) {
  CodeTable table{};
  for (int code = 0; code < 128; ++code) table.low[code] = of(code) & 255, table.high[code] = of(code) >> 8;
  return table;
}

constexpr CodeTable kInt8Table = table_of(small_bf16), kFp8Table = table_of(e4m3_bf16);

// nf4: equal shares of a normal distribution (kernels/packed_bytes.py has the same).
alignas(64) constexpr float kNormalLevels[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
    -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

}  // namespace
}  // namespace pagoda
