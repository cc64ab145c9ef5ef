// Rows of a packed matrix: tokens looked up in an embedding. A row is one lane of a panel, 4 bytes out of every 64, so it
// costs a cache line for each block of inputs; nothing else is read or unpacked.
#include <cstring>
#include <stdexcept>

#include "packed.hpp"
#include "parallel.hpp"
#include "small_floats.hpp"

namespace pagoda {

namespace {

struct Row {
  const PackedMatrix& m;
  int64_t panel, lane;

  uint32_t word(int64_t block) const {
    uint32_t bits;
    std::memcpy(&bits, m.data + panel * m.panel_bytes() + block * kPanel * 4 + lane * 4, 4);
    return bits;
  }

  float scale(int64_t group) const {
    const int64_t at = m.group == 0 ? panel * kPanel + lane : (panel * m.groups() + group) * kPanel + lane;
    return m.wide_scales ? static_cast<const float*>(m.scales)[at] : bf16_value(static_cast<const uint16_t*>(m.scales)[at]);
  }

  float zero(int64_t group) const {
    if (m.zeros) return m.zeros[(panel * m.groups() + group) * kPanel + lane];
    return static_cast<float>(m.middle());
  }

  // What the lowest bits of a field stand for, without its scale.
  float value(uint32_t field, float middle) const {
    switch (m.format) {
      case Format::fp32: return from_bits(field);
      case Format::bf16: return bf16_value(static_cast<uint16_t>(field));
      case Format::fp16: return half_value(static_cast<uint16_t>(field));
      case Format::fp8: return e4m3_value(static_cast<uint8_t>(field));
      case Format::nf4: return kNormalLevels[field & 15];
      default: return float(field & ((1u << m.bits()) - 1)) - middle;
    }
  }

  // Calls put(input, value) for every input.
  template <typename Put>
  void each(Put put) const {
    const int fields = int(m.block()), bits = int(m.bits());
    for (int64_t block = 0; block < m.blocks(); ++block) {
      const uint32_t lanes = word(block);
      const int64_t first = block * fields, group = m.group == 0 ? 0 : first / m.group;
      const bool plain = m.format == Format::fp32 || m.format == Format::bf16 || m.format == Format::fp16;
      const float step = plain ? 1.0f : scale(group), middle = plain ? 0.0f : zero(group);
      for (int n = 0; n < fields && first + n < m.inputs; ++n) put(first + n, value(lanes >> shift_of(n, bits), middle) * step);
    }
  }
};

}  // namespace

void packed_embedding(const PackedMatrix& m, const int64_t* ids, int64_t count, void* out, Dtype dtype, int num_threads) {
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= m.outputs)
      throw std::out_of_range("row " + std::to_string(ids[i]) + " of " + std::to_string(m.outputs));
  const int64_t part = 4, parts = (count + part - 1) / part;
  parallel_for(parts, num_threads, [&](int64_t p) {
    for (int64_t i = p * part; i < count && i < (p + 1) * part; ++i) {
      const Row row{m, ids[i] / kPanel, ids[i] % kPanel};
      if (dtype == Dtype::f32) row.each([to = static_cast<float*>(out) + i * m.inputs](int64_t j, float x) { to[j] = x; });
      else row.each([to = static_cast<uint16_t*>(out) + i * m.inputs](int64_t j, float x) { to[j] = bf16_bits(x); });
    }
  });
}

}  // namespace pagoda
