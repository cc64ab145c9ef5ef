// A piece of a panel turned into numbers that the inner loops multiply: floats, or pairs of bfloat16, 64 bytes a step.
// Integers stay integers (q - offset), since scales are applied to sums; only int4 towards float carries its group scales.
#pragma once

#include "packed.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

constexpr int kVecs = kPanel / kLanes;  // registers of a panel

inline UintVec load_lanes(const void* p) {
  UintVec x;
  memcpy(&x, p, sizeof x);
  return x;
}

// The input of a block that field f of a lane holds.
constexpr int element_of(int field, int fields) { return field < fields / 2 ? 2 * field : 2 * (field - fields / 2) + 1; }

// Scales [16] and, with zero points, what they add, of one panel and group.
struct GroupScale {
  Vec scale[kVecs], zero[kVecs];
};

inline GroupScale group_scale(const PackedMatrix& m, int64_t panel, int64_t g) {
  GroupScale s;
  const int64_t at = (panel * m.groups() + g) * kPanel;
  for (int v = 0; v < kVecs; ++v) {
    s.scale[v] = m.wide_scales ? load(static_cast<const float*>(m.scales) + at + v * kLanes)
                               : load(static_cast<const uint16_t*>(m.scales) + at + v * kLanes);
    s.zero[v] = splat(8.0f);
    if (m.zeros)
      for (int i = 0; i < kLanes; ++i) s.zero[v][i] = m.zeros[at + v * kLanes + i];
  }
  return s;
}

template <int kBits>
void expand_fields(const uint8_t* data, int64_t blocks, float offset, float* out) {
  constexpr int kFields = 32 / kBits;
  constexpr uint32_t kMask = (uint32_t{1} << kBits) - 1;
  for (int64_t b = 0; b < blocks; ++b, data += 64, out += kFields * kPanel)
    for (int v = 0; v < kVecs; ++v) {
      const UintVec lanes = load_lanes(data + v * sizeof(UintVec));
      for (int f = 0; f < kFields; ++f) {
        const IntVec q = (IntVec)((lanes >> (f * kBits)) & kMask);
        store(out + element_of(f, kFields) * kPanel + v * kLanes, __builtin_convertvector(q, Vec) - splat(offset));
      }
    }
}

inline void expand_pairs(const uint8_t* data, int64_t blocks, float* out) {
  for (int64_t b = 0; b < blocks; ++b, data += 64, out += 2 * kPanel)
    for (int v = 0; v < kVecs; ++v) {
      const UintVec lanes = load_lanes(data + v * sizeof(UintVec));
      store(out + v * kLanes, (Vec)(lanes << 16));
      store(out + kPanel + v * kLanes, (Vec)(lanes & 0xffff0000u));
    }
}

// Inputs first..first + count of a panel as floats [count][16]; first is a multiple of 128 (of whole groups and blocks).
inline void expand_floats(const PackedMatrix& m, int64_t panel, int64_t first, int64_t count, float* out) {
  const uint8_t* data = m.data + panel * m.panel_bytes() + first / m.block() * 64;
  const int64_t blocks = (count + m.block() - 1) / m.block();
  switch (m.format) {
    case Format::fp32: memcpy(out, data, blocks * 64); return;
    case Format::bf16: return expand_pairs(data, blocks, out);
    case Format::int8: return expand_fields<8>(data, blocks, 128.0f, out);
    case Format::ternary: return expand_fields<2>(data, blocks, 1.0f, out);
    case Format::int4: break;
  }
  for (int64_t k = 0; k < count; k += m.group) {
    const int64_t part = ((m.group < count - k ? m.group : count - k) + 7) / 8;
    float* const group = out + k * kPanel;
    expand_fields<4>(data + k / 8 * 64, part, 0.0f, group);
    const GroupScale s = group_scale(m, panel, (first + k) / m.group);
    for (int64_t i = 0; i < part * 8; ++i)
      for (int v = 0; v < kVecs; ++v) {
        float* const at = group + i * kPanel + v * kLanes;
        store(at, (load(at) - s.zero[v]) * s.scale[v]);
      }
  }
}

#if PAGODA_DPBF16

// bfloat16 of small integers: entry i is the number `i % period - offset`, for look-up by words.
struct WordTable {
  alignas(64) uint16_t entry[32];
  constexpr WordTable(int period, int offset) : entry() {
    for (int i = 0; i < 32; ++i) entry[i] = small(i % period - offset);
  }
  static constexpr uint16_t small(int value) {
    const int size = value < 0 ? -value : value;
    int exponent = 0;
    while (size >> (exponent + 1)) ++exponent;
    if (size == 0) return 0;
    const int mantissa = exponent <= 7 ? (size << (7 - exponent)) & 127 : 0;
    return static_cast<uint16_t>((value < 0 ? 0x8000 : 0) | (127 + exponent) << 7 | mantissa);
  }
};

// The two bytes of the bfloat16 of 0..127, for look-up by bytes.
struct ByteTables {
  alignas(64) uint8_t low[128], high[128];
  constexpr ByteTables() : low(), high() {
    for (int i = 0; i < 128; ++i) low[i] = WordTable::small(i) & 255, high[i] = WordTable::small(i) >> 8;
  }
};

constexpr WordTable kNibbles(16, 8), kTernary(4, 1);
constexpr ByteTables kBytes;

template <int kBits>
void look_up(const uint8_t* data, int64_t blocks, const WordTable& table, uint32_t* out) {
  const __m512i entries = _mm512_load_si512(table.entry);
  for (int64_t b = 0; b < blocks; ++b, data += 64) {
    const __m512i lanes = _mm512_loadu_si512(data);
#pragma GCC unroll 8
    for (int n = 0; n < 16 / kBits; ++n, out += kPanel)
      _mm512_store_si512(out, _mm512_permutexvar_epi16(_mm512_srli_epi32(lanes, n * kBits), entries));
  }
}

inline void look_up_bytes(const uint8_t* data, int64_t blocks, uint32_t* out) {
  const __m512i low0 = _mm512_load_si512(kBytes.low), low1 = _mm512_load_si512(kBytes.low + 64);
  const __m512i high0 = _mm512_load_si512(kBytes.high), high1 = _mm512_load_si512(kBytes.high + 64);
  const __m512i sign = _mm512_set1_epi8(-128), even = _mm512_set1_epi16(0x00ff);
  for (int64_t b = 0; b < blocks; ++b, data += 64, out += 2 * kPanel) {
    const __m512i q = _mm512_xor_si512(_mm512_loadu_si512(data), sign);
    const __m512i size = _mm512_abs_epi8(q);
    const __m512i low = _mm512_permutex2var_epi8(low0, size, low1);
    const __m512i high =  // with the sign: bits of the table, or the top bit of q
        _mm512_ternarylogic_epi32(_mm512_permutex2var_epi8(high0, size, high1), q, sign, 0xf8);
    // Halves of a lane: low bytes under the mask, high bytes over it.
    _mm512_store_si512(out, _mm512_ternarylogic_epi32(even, low, _mm512_slli_epi16(high, 8), 0xca));
    _mm512_store_si512(out + kPanel, _mm512_ternarylogic_epi32(even, _mm512_srli_epi16(low, 8), high, 0xca));
  }
}

// The same as pairs of bfloat16 [count / 2][16]; int4 without its scales.
inline void expand_bf16(const PackedMatrix& m, int64_t panel, int64_t first, int64_t count, uint32_t* out) {
  const uint8_t* data = m.data + panel * m.panel_bytes() + first / m.block() * 64;
  const int64_t blocks = (count + m.block() - 1) / m.block();
  if (m.format == Format::int8) look_up_bytes(data, blocks, out);
  else if (m.format == Format::int4) look_up<4>(data, blocks, kNibbles, out);
  else look_up<2>(data, blocks, kTernary, out);
}

#endif

}  // namespace
}  // namespace pagoda
