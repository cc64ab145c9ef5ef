// Rows of a packed matrix: tokens looked up in an embedding. A row is one lane of a panel, 4 bytes out of every 64, so it
// costs a cache line for each block of inputs; nothing else is read or unpacked.
#include <cstring>
#include <stdexcept>

#include "fetch.hpp"
#include "packed.hpp"
#include "parallel.hpp"
#include "small_floats.hpp"

namespace pagoda {

namespace {

constexpr int64_t kLinesAhead = 48;  // as many as a core waits for at once: unpacking one takes too long for others to be on their way by themselves

struct Row {
  const PackedMatrix& m;
  int64_t panel, lane;

  const uint8_t* line(int64_t block) const { return m.data + panel * m.panel_bytes() + block * kPanel * 4; }

  uint32_t word(int64_t block) const {
    uint32_t bits;
    std::memcpy(&bits, line(block) + lane * 4, 4);
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

  // Calls put(input, value) for every input, by the matrix's format.
  template <typename Put>
  void each(Put put) const {
    switch (m.format) {
      case Format::fp32: return plain<32>([](uint32_t field) { return from_bits(field); }, put);
      case Format::bf16: return plain<16>([](uint32_t field) { return bf16_value(static_cast<uint16_t>(field)); }, put);
      case Format::bf12: return chunks(put);
      case Format::fp16: return plain<16>([](uint32_t field) { return half_value(static_cast<uint16_t>(field)); }, put);
      case Format::fp8: return scaled<8>([](uint32_t field, float) { return e4m3_value(static_cast<uint8_t>(field)); }, put);
      case Format::nf4: return scaled<4>([](uint32_t field, float) { return kNormalLevels[field & 15]; }, put);
      case Format::int8: return scaled<8>(integer<8>, put);
      case Format::int4: return scaled<4>(integer<4>, put);
      case Format::ternary: return scaled<2>(integer<2>, put);
      case Format::int5: return scaled<5>(integer<5>, put);
      default: throw std::invalid_argument("an embedding of this format has no rows to be read");
    }
  }

 private:
  template <int kBits>
  static float integer(uint32_t field, float middle) { return float(field & ((1u << kBits) - 1)) - middle; }

  template <int kBits, typename Value, typename Put>
  void plain(Value value, Put put) const {
    fields<kBits>(0, m.blocks(), [=](uint32_t field) { return value(field); }, put);
  }

  // bf12: a word of a chunk's lines is a pair of inputs.
  template <typename Put>
  void chunks(Put put) const {
    const Window& window = m.windows[panel];
    const uint8_t* chunk = m.data + panel * m.panel_bytes() + lane * 4;
    for (int64_t input = 0; input < m.inputs; input += 8, chunk += kChunkBytes) {
      for (int part = 0; part < 3; ++part) ask_first(chunk + kLinesAhead * 64 + part * 64);
      uint32_t rest[2], codes;
      std::memcpy(&rest[0], chunk, 4), std::memcpy(&rest[1], chunk + 64, 4), std::memcpy(&codes, chunk + 128, 4);
      for (int n = 0; n < 8 && input + n < m.inputs; ++n) {  // line n / 2, the upper word where n is odd
        const uint32_t word = rest[n / 4] >> 16 * (n % 2) & 0xffffu, own = n / 2 % 2 ? (word << 8 | word >> 8) : word;
        const uint32_t code = codes >> (16 * (n % 2) + 4 * (n / 2)) & 15u, exponent = code || window.window & kNoZeros ? code + (window.window & 0xff) : 0;
        put(input + n, bf16_value(static_cast<uint16_t>((own & 0x807fu) | exponent << 7)));
      }
    }
    for (int32_t i = 0; i < window.count; ++i) {
      const uint32_t found = window.exceptions()[i], word = found >> 8, at = word % (2 * kPanel);
      if (at / 2 != lane) continue;
      const int64_t n = word / (2 * kPanel) * 2 + at % 2, line = n / 2;
      if (n >= m.inputs) continue;
      const uint8_t* from = m.data + panel * m.panel_bytes() + line / 4 * kChunkBytes + line % 4 / 2 * 64 + at * 2;
      uint16_t own;
      std::memcpy(&own, from, 2);
      if (line % 2) own = static_cast<uint16_t>(own << 8 | own >> 8);
      put(n, bf16_value(static_cast<uint16_t>((own & 0x807fu) | (found & 0xffu) << 7)));
    }
  }

  // A group of inputs at a time: its scale is looked up once. (A division and a choice of format for each input took 32 rows of 2048 350 us.)
  template <int kBits, typename Value, typename Put>
  void scaled(Value value, Put put) const {
    const int64_t all = m.blocks(), some = m.group == 0 ? all : m.group / m.block();
    for (int64_t group = 0, first = 0; first < all; ++group, first += some) {
      const float step = scale(group), middle = zero(group);
      fields<kBits>(first, first + some < all ? first + some : all, [=](uint32_t field) { return value(field, middle) * step; }, put);
    }
  }

  template <int kBits, typename Value, typename Put>
  void fields(int64_t first, int64_t end, Value value, Put put) const {
    constexpr int kFields = 32 / kBits;
    for (int64_t block = first; block < end; ++block) {
      ask_first(line(block + kLinesAhead));  // past the end it does nothing
      const uint32_t lanes = word(block);
      const int64_t input = block * kFields;
      const int count = input + kFields <= m.inputs ? kFields : int(m.inputs - input);
      for (int n = 0; n < count; ++n) put(input + n, value(lanes >> shift_of(n, kBits)));
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
