// Codes of grouped formats, opened to what tiles multiply: less their zero points, so that a group's sums are right as they leave the tiles.
//
// The groups of a slice, pair of panels by pair of panels, are a stream. A group is opened while tiles multiply the one before it, into a ring:
//
//   opened    │ pair 0, group 0 │ pair 0, group 1 │ … │ pair 0, last group │ pair 1, group 0 │ …     number of a group: 0, 1, 2, …
//   slot      │ 0               │ 1               │ … number of the group modulo slots
//
//   slot      [2 panels][opened lines of a group][16 rows x 32 bits]
#pragma once

#include "packed_fields.hpp"

namespace pagoda {
namespace {

// What a stored line becomes: kLines opened ones. `zero`: what zero_of made of sixteen rows' zero points (or of none: the middle).
struct BytesOfInt4 {  // signed bytes, for tokens in 8 bits
  static constexpr int kLines = 2;
  static __m512i zero_of(const uint8_t* zeros) {
    return zeros ? _mm512_mullo_epi32((__m512i)load_bytes(zeros), _mm512_set1_epi32(0x01010101)) : _mm512_set1_epi8(8);
  }
  static __m512i opened(__m512i line, int n, __m512i zero) {
    return _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi32(line, 4 * n), _mm512_set1_epi8(15)), zero);
  }
};

template <int kBits>
struct PairsOfCodes {  // pairs of bfloat16: codes less the middle
  static constexpr int kLines = PairsOf<kBits>::kSteps;
  static __m512i zero_of(const uint8_t*) { return __m512i{}; }
  static __m512i opened(__m512i line, int n, __m512i) { return (__m512i)PairsOf<kBits>::numbers(line, n); }
};

// The same less zero points: looked up by the difference, which has a bit more than a code.
template <int kBits>
struct DifferenceTable {
  alignas(64) uint16_t entry[64];
  constexpr DifferenceTable() : entry() {
    for (int i = 0; i < 2 << kBits; ++i) entry[i] = small_bf16(i - (1 << kBits));
  }
};

template <int kBits>
constexpr DifferenceTable<kBits> kDifferences{};

template <int kBits>
struct PairsOfDifferences {
  static constexpr int kLines = PairsOf<kBits>::kSteps;
  static __m512i zero_of(const uint8_t* zeros) {
    const __m512i zero = (__m512i)load_bytes(zeros);
    return _mm512_sub_epi16(_mm512_set1_epi16(1 << kBits), _mm512_or_si512(zero, _mm512_slli_epi32(zero, 16)));
  }
  static __m512i opened(__m512i line, int n, __m512i zero) {
    const __m512i code = _mm512_and_si512(_mm512_srli_epi32(line, n * kBits), _mm512_set1_epi16((1 << kBits) - 1));
    const __m512i index = _mm512_add_epi16(code, zero), low = _mm512_load_si512(kDifferences<kBits>.entry);
    if (kBits == 4) return _mm512_permutexvar_epi16(index, low);
    return _mm512_permutex2var_epi16(low, index, _mm512_load_si512(kDifferences<kBits>.entry + 32));
  }
};

// What memory is asked for while codes are read: 64 lines on in the same pair of panels, in the next pair, or in what the thread reads after
// its slice; nothing new where there is nothing.
struct CodesAhead {
  static constexpr int64_t kLines = 64;
  const uint8_t* at;
  int64_t apart;  // bytes between the panels

  // `line` of a pair, which is the last one of the slice or followed by one `next_pair` bytes on.
  CodesAhead(const LinearSlice& s, const uint8_t* pair, int64_t bytes_apart, int64_t next_pair, bool last, int64_t blocks, int64_t line)
      : at(pair + line * 64), apart(bytes_apart) {
    const int64_t behind = (line + kLines - blocks) * 64;
    if (behind < 0) at += kLines * 64;
    else if (!last) at = pair + next_pair + behind;
    else if (behind < s.next.panel_bytes) at = s.next.data + behind, apart = s.next.apart;
  }
};

class CodeStream {
 public:
  // Pairs of panels first, first + width, … below `end`: neighbours (width 2; the last may be alone), or `apart` from each other (width 1).
  // A group is opened in `shares`; tokens of 8 bits meet bytes, others pairs.
  CodeStream(const LinearSlice& slice, bool bytes, int64_t first, int64_t end_panel, int64_t width, int64_t apart, int64_t shares)
      : s(slice), m(s.matrix), end(end_panel), step(width), blocks(m.blocks()), groups(m.groups()), stored_bytes(m.panel_bytes()),
        codes_apart(apart * stored_bytes), zeros_apart(apart * groups * kPanel), lines_of_group(m.group / m.block()),
        lines_of_share((lines_of_group + shares - 1) / shares), panel(first) {
    if (bytes) choose<BytesOfInt4>();
    else if (m.format == Format::int4) m.zeros ? choose<PairsOfDifferences<4>>() : choose<PairsOfCodes<4>>();
    else m.zeros ? choose<PairsOfDifferences<5>>() : choose<PairsOfCodes<5>>();
  }

  int64_t slot_bytes() const { return 2 * panel_bytes(); }
  int64_t panel_bytes() const { return lines_of_group * opened_lines * 64; }  // of a slot
  void open_into(uint8_t* ring, int64_t count) {
    memory = slot = ring, end_of_memory = ring + count * slot_bytes();
    begin();
  }

  const uint8_t* at(int64_t number) const { return memory + number * slot_bytes() % (end_of_memory - memory); }
  const uint8_t* after(const uint8_t* one) const { return one + slot_bytes() == end_of_memory ? memory : one + slot_bytes(); }
  void open_through(int64_t number) {
    while (opened <= number) share();
  }
  void share() {
    if (panel < end) open_share(*this);
  }

 private:
  template <class Codes>
  void choose() {
    opened_lines = Codes::kLines;
    open_share = [](CodeStream& s) { s.open<Codes>(); };
  }

  // The next group, which lies in two panels, or in the last one alone.
  void begin() {
    if (panel >= end) return;
    panels = step == 1 || panel + 1 < end ? 2 : 1;
    line = 0, stored = smaller(lines_of_group, blocks - group * lines_of_group);
    pair = m.data + panel * stored_bytes;
    zeros = m.zeros ? m.zeros + (panel * groups + group) * kPanel : nullptr;
  }

  template <class Codes>
  void open() {
    const int64_t last = smaller(lines_of_group, line + lines_of_share), count = smaller(last, stored) - line, first = group * lines_of_group + line;
    const CodesAhead ahead(s, pair, codes_apart, step * stored_bytes, panel + step >= end, blocks, first);
    for (int64_t i = 0; i < panels; ++i) {
      const uint8_t *codes = pair + i * codes_apart + first * 64, *fetched = ahead.at + i * ahead.apart;
      const __m512i zero = Codes::zero_of(zeros ? zeros + i * zeros_apart : nullptr);
      uint8_t* to = slot + i * panel_bytes() + line * Codes::kLines * 64;
      for (int64_t l = 0; l < count; ++l, codes += 64, fetched += 64, to += Codes::kLines * 64) {
        __builtin_prefetch(fetched, 0, 2);
        const __m512i stored_line = _mm512_loadu_si512(codes);
#pragma GCC unroll 4
        for (int n = 0; n < Codes::kLines; ++n) _mm512_store_si512(to + n * 64, Codes::opened(stored_line, n, zero));
      }
      const int64_t behind = last - line - larger(count, 0);
      if (behind) memset(to, 0, behind * Codes::kLines * 64);  // of the last group, where it is short
    }
    line = last;
    if (line < lines_of_group) return;
    ++opened, slot = const_cast<uint8_t*>(after(slot));
    if (++group == groups) group = 0, panel += step;
    begin();
  }

  const LinearSlice& s;
  const PackedMatrix& m;
  const int64_t end, step, blocks, groups, stored_bytes, codes_apart, zeros_apart, lines_of_group, lines_of_share;
  int64_t opened_lines = 0;  // of a stored one
  void (*open_share)(CodeStream&) = nullptr;
  uint8_t *memory = nullptr, *end_of_memory = nullptr;
  int64_t opened = 0;        // whole groups
  int64_t panel, group = 0;  // the next one
  int64_t panels = 0, line = 0, stored = 0;  // of it: lines that there are
  const uint8_t *pair = nullptr, *zeros = nullptr;
  uint8_t* slot = nullptr;
};

}  // namespace
}  // namespace pagoda
