// Codes that lie as they are stored, row by row, opened into floats: a panel of sixteen rows, some inputs at a time, in the order
// of fp32's panels. `PackedMatrix::data` is a table of addresses then (kernels/coded.py writes it):
//
//   rank, blocks, then   int3, int2   codes of 2 bits, of one more (int3), steps, lowest values, left, right
//                        dgq          codes of 4 bits, steps, zeros, scales of rows
//                        bitstack     of every block: signs, left, right
//
// Steps and the like are [rows][groups]; steps, lowest values, left [rows][rank] and right [rank][inputs] are float16. The product of
// left and right of int3 and int2 is never opened: tokens times right come with the tokens (`Tokens::low`), and left is added at the end.
#pragma once

#include "packed_fields.hpp"

namespace pagoda {
namespace {

constexpr int64_t kOpened = 128;  // inputs at a time

inline Vec load_halves(const uint16_t* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  Vec x;
  for (int i = 0; i < kLanes; ++i) x[i] = half_value(p[i]);
  return x;
#endif
}

// The rows of a panel; those that the matrix does not have are its last one again.
struct PanelRows {
  int64_t first_row, last;  // in the panel: the number of its last row
  PanelRows(const PackedMatrix& m, int64_t panel) : first_row(panel * kPanel) {
    last = (m.outputs - first_row < kPanel ? m.outputs - first_row : kPanel) - 1;
  }

  // put(r, where row r begins) for rows of a matrix [rows][stride].
  template <class T, class Put>
  void each(const T* values, int64_t stride, Put put) const {
    const T* from = values + first_row * stride;
    for (int64_t r = 0; r < kPanel; ++r) {
      put(r, from);
      from += r < last ? stride : 0;
    }
  }

  // Words [kWords][16] from byte `first` of rows that are `stride` bytes apart; what a row's end cuts off is 0.
  template <int kWords>
  void words(const uint8_t* codes, int64_t stride, int64_t first, uint32_t (*to)[kPanel]) const {
    const int64_t left = stride - first;
    const auto put = [&](int64_t r, const uint8_t* from) {
      for (int64_t w = 0; w < kWords; ++w) memcpy(&to[w][r], from + 4 * w, 4);
    };
    if (left >= 4 * kWords) return each(codes + first, stride, put);
    each(codes + first, stride, [&](int64_t r, const uint8_t* from) {
      uint8_t cut[4 * kWords] = {};
      memcpy(cut, from, left);
      put(r, cut);
    });
  }

  // Columns first … first + count of values [rows][stride].
  template <class T>
  void columns(const T* values, int64_t stride, int64_t first, int64_t count, T (*to)[kPanel]) const {
    for (int64_t g = 0; g < count; ++g) each(values + first + g, stride, [&](int64_t r, const T* from) { to[g][r] = *from; });
  }
};

// A panel of left [rows][rank], [rank][16], as floats.
inline void open_left(const PanelRows& rows, const uint16_t* halves, int64_t rank, Vec (*to)[kVecs]) {
  uint16_t some[8][kPanel];
  for (int64_t first = 0; first < rank; first += 8) {
    const int64_t count = rank - first < 8 ? rank - first : 8;
    rows.columns(halves, rank, first, count, some);
    for (int64_t k = 0; k < count; ++k)
      for (int v = 0; v < kVecs; ++v) to[first + k][v] = load_halves(some[k] + v * kLanes);
  }
}

template <class T>
const T* part_of(const PackedMatrix& m, int64_t number) {
  return reinterpret_cast<const T*>(m.table()[2 + number]);
}

// Codes of up to kOpened inputs of a panel: `read` strews them over lanes, `open` takes kWord inputs of them in register v (in order:
// what a group shares stays in `word`), and `value` says what number n of those is. Numbers are strewn long before they are loaded
// into registers, since a load would wait for sixteen fresh stores.

template <bool kHigh>
struct GridCodes {  // int3, int2
  static constexpr int kWord = 16;
  alignas(64) uint32_t low_bits[kOpened / 16][kPanel], high_bits[kOpened / 32][kPanel];
  uint16_t step[kOpened / 32][kPanel], low[kOpened / 32][kPanel];  // by groups
  int64_t group;

  struct Word {
    UintVec low_bits, high_bits;
    Vec step, low;
  };

  void read(const PackedMatrix& m, const PanelRows& rows, int64_t first, int64_t count) {
    group = m.group < kOpened ? m.group : kOpened;
    const int64_t groups = (count + group - 1) / group;
    rows.columns(part_of<uint16_t>(m, 2), m.groups(), first / m.group, groups, step);
    rows.columns(part_of<uint16_t>(m, 3), m.groups(), first / m.group, groups, low);
    rows.words<kOpened / 16>(part_of<uint8_t>(m, 0), (m.inputs + 3) / 4, first / 4, low_bits);
    if (kHigh) rows.words<kOpened / 32>(part_of<uint8_t>(m, 1), (m.inputs + 7) / 8, first / 8, high_bits);
  }

  void open(int64_t i, int v, Word& word) const {
    word.low_bits = load_lanes(low_bits[i / 16] + v * kLanes);
    if (kHigh) word.high_bits = load_lanes(high_bits[i / 32] + v * kLanes) >> static_cast<uint32_t>(i % 32);
    if (i % 32) return;
    word.step = load_halves(step[i / group] + v * kLanes), word.low = load_halves(low[i / group] + v * kLanes);
  }

  static Vec value(const Word& word, uint32_t n) {
    UintVec q = (word.low_bits >> (2 * n)) & 3u;
    if (kHigh) q |= (n < 2 ? word.high_bits << (2 - n) : word.high_bits >> (n - 2)) & 4u;
    return fused(to_floats((IntVec)q), word.step, word.low);
  }
};

struct DgqCodes {
  static constexpr int kWord = 8;
  alignas(64) uint32_t words[kOpened / 8][kPanel];
  uint8_t step[kOpened / 32][kPanel], zero[kOpened / 32][kPanel];
  float scale[kPanel];
  int64_t group;

  struct Word {
    UintVec words;
    Vec step, zero;
  };

  void read(const PackedMatrix& m, const PanelRows& rows, int64_t first, int64_t count) {
    group = m.group < kOpened ? m.group : kOpened;
    const int64_t groups = (count + group - 1) / group;
    rows.columns(part_of<uint8_t>(m, 1), m.groups(), first / m.group, groups, step);
    rows.columns(part_of<uint8_t>(m, 2), m.groups(), first / m.group, groups, zero);
    rows.columns(part_of<float>(m, 3), 1, 0, 1, &scale);
    rows.words<kOpened / 8>(part_of<uint8_t>(m, 0), (m.inputs + 1) / 2, first / 2, words);
  }

  void open(int64_t i, int v, Word& word) const {
    word.words = load_lanes(words[i / 8] + v * kLanes);
    if (i % 32) return;
    word.step = to_floats(load_bytes(step[i / group] + v * kLanes)) * load(scale + v * kLanes);
    word.zero = to_floats(load_bytes(zero[i / group] + v * kLanes));
  }

  static Vec value(const Word& word, uint32_t n) {
    return (to_floats((IntVec)((word.words >> (4 * n)) & 15u)) - word.zero) * word.step;
  }
};

// Inputs first … first + count, kOpened at most, of a panel: to [count][16]; `first` is a multiple of 32 and, of groups that are no
// larger, of a group.
template <class Codes>
void open_codes(const PackedMatrix& m, const PanelRows& rows, int64_t first, int64_t count, float* to) {
  Codes codes;
  codes.read(m, rows, first, count);
  typename Codes::Word words[kVecs] = {};
  for (int64_t i = 0; i < count; i += Codes::kWord)
    for (int v = 0; v < kVecs; ++v) {
      typename Codes::Word& word = words[v];
      codes.open(i, v, word);
      float* const at = to + i * kPanel + v * kLanes;
      if (count - i >= Codes::kWord)
#pragma GCC unroll 16
        for (int n = 0; n < Codes::kWord; ++n) store(at + n * kPanel, Codes::value(word, n));
      else
        for (int64_t n = 0; n < count - i; ++n) store(at + n * kPanel, Codes::value(word, n));
    }
}

// Some panels times few tokens without opened numbers in between: sums [tokens][panels][16]. The bits are those of opening them first.
template <class Codes, int kTokens, int kPanels>
__attribute__((noinline)) void multiply_codes(const PackedMatrix& m, const Tokens& x, int64_t panel, float* sums) {
  Codes codes[kPanels];
  Vec sum[kTokens][kPanels][kVecs] = {};
  typename Codes::Word word[kPanels][kVecs] = {};
  const auto add = [&](const float* token, uint32_t n) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        const Vec value = Codes::value(word[p][v], n);
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; ++t) sum[t][p][v] = fused(value, token[t * x.steps + n], sum[t][p][v]);
      }
  };
  for (int64_t first = 0; first < m.inputs; first += kOpened) {
    const int64_t count = kOpened < m.inputs - first ? kOpened : m.inputs - first;
    for (int p = 0; p < kPanels; ++p) codes[p].read(m, PanelRows(m, panel + p), first, count);
    for (int64_t i = 0; i < count; i += Codes::kWord) {
      const float* const token = reinterpret_cast<const float*>(x.data) + first + i;
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p)
        for (int v = 0; v < kVecs; ++v) codes[p].open(i, v, word[p][v]);
      if (count - i >= Codes::kWord)
#pragma GCC unroll 16
        for (int n = 0; n < Codes::kWord; ++n) add(token, n);
      else
        for (int64_t n = 0; n < count - i; ++n) add(token, static_cast<uint32_t>(n));
    }
  }
  for (int t = 0; t < kTokens; ++t)
    for (int p = 0; p < kPanels; ++p)
      for (int v = 0; v < kVecs; ++v) store(sums + (t * kPanels + p) * kPanel + v * kLanes, sum[t][p][v]);
}

// Tokens and panels that are multiplied so.
constexpr int kCodedTokens = 4, kCodedPanels = kLanes == 16 ? 4 : 1;

template <class Codes, int kPanels>
void multiply_codes(const PackedMatrix& m, const Tokens& x, int64_t panel, float* sums) {
  if (x.count == 1) return multiply_codes<Codes, 1, kPanels>(m, x, panel, sums);
  if (x.count == 2) return multiply_codes<Codes, 2, kPanels>(m, x, panel, sums);
  if (x.count == 3) return multiply_codes<Codes, 3, kPanels>(m, x, panel, sums);
  multiply_codes<Codes, 4, kPanels>(m, x, panel, sums);
}

template <int kPanels>
void multiply_codes(const PackedMatrix& m, const Tokens& x, int64_t panel, float* sums) {
  if (m.format == Format::int3) multiply_codes<GridCodes<true>, kPanels>(m, x, panel, sums);
  else if (m.format == Format::int2) multiply_codes<GridCodes<false>, kPanels>(m, x, panel, sums);
  else multiply_codes<DgqCodes, kPanels>(m, x, panel, sums);
}

// One block of a stack, added to what is there but for the first. kRank: 0 where it is known only now.
template <int kRank>
void open_block(const Vec (*left)[kVecs], const float* right, int64_t rank, const uint32_t (*signs)[kPanel], int64_t count, bool add,
                float* to) {
  for (int v = 0; v < kVecs; ++v) {
    Vec own[kRank ? kRank : 1];
    for (int k = 0; k < (kRank ? kRank : 1); ++k) own[k] = left[k][v];
    for (int64_t i = 0; i < count; ++i) {
      Vec size = own[0] * right[i];
#pragma GCC unroll 8
      for (int64_t k = 1; k < (kRank ? kRank : rank); ++k) size = fused(kRank ? own[kRank ? k : 0] : left[k][v], right[k * kOpened + i], size);
      const UintVec sign = load_lanes(signs[i / 32] + v * kLanes) << static_cast<uint32_t>(31 - i % 32) & 0x80000000u;
      const Vec value = (Vec)((UintVec)size ^ sign);
      float* const at = to + i * kPanel + v * kLanes;
      store(at, add ? load(at) + value : value);
    }
  }
}

inline void open_stack(const PackedMatrix& m, const PanelRows& rows, int64_t first, int64_t count, float* to, char* scratch) {
  const int64_t rank = m.table()[0], blocks = m.table()[1];
  alignas(64) uint32_t signs[kOpened / 32][kPanel];
  Vec(*const left)[kVecs] = reinterpret_cast<Vec(*)[kVecs]>(scratch);
  float* const right = reinterpret_cast<float*>(scratch + rank * kPanel * 4);
  for (int64_t block = 0; block < blocks; ++block) {
    const uint16_t* const halves = part_of<uint16_t>(m, 3 * block + 2);
    rows.words<kOpened / 32>(part_of<uint8_t>(m, 3 * block), (m.inputs + 7) / 8, first / 8, signs);
    open_left(rows, part_of<uint16_t>(m, 3 * block + 1), rank, left);
    for (int64_t k = 0; k < rank; ++k) {
      const uint16_t* const from = halves + k * m.inputs + first;
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) store(right + k * kOpened + i, load_halves(from + i));
      for (; i < count; ++i) right[k * kOpened + i] = half_value(from[i]);
    }
    (rank == 8 ? open_block<8> : open_block<0>)(left, right, rank, signs, count, block > 0, to);
  }
}

// Bytes that opening needs beside its result, at an address that is a multiple of 64.
inline int64_t opening_bytes(const PackedMatrix& m) {
  return m.format == Format::bitstack ? m.table()[0] * (kPanel + kOpened) * 4 : 0;
}

// Any number of inputs of a panel.
inline void open_panel(const PackedMatrix& m, int64_t panel, int64_t first, int64_t count, float* to, char* scratch) {
  const PanelRows rows(m, panel);
  for (int64_t i = 0; i < count; i += kOpened, to += kOpened * kPanel) {
    const int64_t here = kOpened < count - i ? kOpened : count - i;
    switch (m.format) {
      case Format::int3: open_codes<GridCodes<true>>(m, rows, first + i, here, to); break;
      case Format::int2: open_codes<GridCodes<false>>(m, rows, first + i, here, to); break;
      case Format::dgq: open_codes<DgqCodes>(m, rows, first + i, here, to); break;
      default: open_stack(m, rows, first + i, here, to, scratch);
    }
  }
}

}  // namespace
}  // namespace pagoda
