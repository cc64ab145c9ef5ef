// The inner loops: a tile of tokens by panels. Every operand has the same shape here: 64 bytes of a panel are sixteen rows of
// 32 bits, multiplied by 32 bits of a token.
//
//   sum[token][panel] += panel line (16 rows x 32 bits) * token step (32 bits, the same for all rows)
//
// A row's sum runs over the inputs one after the other whatever the tile is, so the bits of a result do not depend on it.
#pragma once

#include "packed_expand.hpp"

// g++ 12 keeps the sums of a tile in registers only when its loop is compiled alone.
#define PAGODA_OWN_REGISTERS __attribute__((noinline))

namespace pagoda {
namespace {

inline UintVec splat_word(uint32_t x) { return x - UintVec{}; }

struct Floats {
  typedef Vec Sum;
  typedef Vec Word;
  static constexpr int kSplit = 1;  // token steps that a line of a panel meets
  static Word word(uint32_t x) { return (Vec)splat_word(x); }
  static Sum add(Sum sum, UintVec line, Word x) { return sum + (Vec)line * x; }
};

#if PAGODA_DPBF16
struct Pairs {
  typedef Vec Sum;
  typedef __m512bh Word;
  static constexpr int kSplit = 1;
  static Word word(uint32_t x) { return (__m512bh)_mm512_set1_epi32(x); }
  static Sum add(Sum sum, UintVec line, Word x) { return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)line, x); }
};
#endif

// Unsigned bytes of a panel by signed bytes of a token, four at a time. 8 / kParts bits are a field of a line.
template <int kParts>
struct Quads {
  typedef IntVec Sum;
  static constexpr int kSplit = kParts;
#if defined(__AVX512VNNI__)
  typedef __m512i Word;
  static Word word(uint32_t x) { return _mm512_set1_epi32(x); }
  static Sum add(Sum sum, UintVec line, Word x) { return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)line, x); }
#elif defined(__AVX2__)
  // Without VNNI by words, since the sum of two byte products saturates in vpmaddubsw: 255 * 127 * 2 > 32767.
  struct Word {
    UintVec low, high;  // bytes 0 and 2, bytes 1 and 3, with their signs
  };
  static Word word(uint32_t x) {
    const uint32_t low = (x & 0xff) << 8 | (x & 0xff0000) << 8;
    return {splat_word(uint32_t(int16_t(low) >> 8 & 0xffff) | uint32_t(int32_t(low) >> 24) << 16),
            splat_word(uint32_t(int16_t(x) >> 8 & 0xffff) | uint32_t(int32_t(x) >> 24) << 16)};
  }
  static Sum add(Sum sum, UintVec line, Word x) {
    const UintVec low = line & 0x00ff00ffu, high = (line >> 8) & 0x00ff00ffu;
    return sum + madd(low, x.low) + madd(high, x.high);
  }
#if defined(__AVX512F__)
  static IntVec madd(UintVec a, UintVec b) { return (IntVec)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
#else
  static IntVec madd(UintVec a, UintVec b) { return (IntVec)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
#endif
#else
  typedef uint32_t Word;
  static Word word(uint32_t x) { return x; }
  static Sum add(Sum sum, UintVec line, Word x) {
    for (int byte = 0; byte < 4; ++byte)
      sum += (IntVec)((line >> (8 * byte)) & 0xffu) * int32_t(int8_t(x >> (8 * byte)));
    return sum;
  }
#endif
};

// One part of a line: all of it, or the byte fields that a shift brings to the bottom.
template <int kSplit>
inline UintVec part_of(UintVec line, int part) {
  if constexpr (kSplit == 1) return line;
  constexpr uint32_t kMask = kSplit == 2 ? 0x0f0f0f0fu : 0x03030303u;
  return (line >> (8 / kSplit * part)) & kMask;
}

struct Tile {
  const uint8_t* panel;  // first line of the first panel
  int64_t panel_stride;  // bytes
  int64_t ahead;         // bytes from a line to the one to fetch meanwhile
  const uint32_t* token;
  int64_t token_stride;  // words
  int64_t lines;
  void* sums;            // [tokens][sum_stride] of 32 bits, panels side by side
  int64_t sum_stride;
  bool add;              // to what is there
};

template <class Op, int kTokens, int kPanels>
__attribute__((always_inline)) inline void multiply(
    typename Op::Sum (&sum)[kTokens][kPanels][kVecs], const uint8_t* panel, int64_t panel_stride, int64_t ahead,
    const uint32_t* token, int64_t token_stride, int64_t lines) {
  for (int64_t i = 0; i < lines; ++i, panel += 64) {
    UintVec line[kPanels][kVecs];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      __builtin_prefetch(panel + p * panel_stride + ahead);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) line[p][v] = load_lanes(panel + p * panel_stride + v * sizeof(UintVec));
    }
#pragma GCC unroll 4
    for (int part = 0; part < Op::kSplit; ++part) {
      UintVec field[kPanels][kVecs];
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) field[p][v] = part_of<Op::kSplit>(line[p][v], part);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        const auto x = Op::word(token[t * token_stride + part]);
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 4
          for (int v = 0; v < kVecs; ++v) sum[t][p][v] = Op::add(sum[t][p][v], field[p][v], x);
      }
    }
    token += Op::kSplit;
  }
}

// A whole stretch of inputs without scales between.
template <class Op, int kTokens, int kPanels>
PAGODA_OWN_REGISTERS void plain_tile(const Tile& tile) {
  typedef typename Op::Sum Sum;
  Sum sum[kTokens][kPanels][kVecs];
  uint32_t* const at = static_cast<uint32_t*>(tile.sums);
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v)
        sum[t][p][v] = tile.add ? (Sum)load_lanes(at + t * tile.sum_stride + p * kPanel + v * kLanes) : Sum{};
  multiply<Op>(sum, tile.panel, tile.panel_stride, tile.ahead, tile.token, tile.token_stride, tile.lines);
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) memcpy(at + t * tile.sum_stride + p * kPanel + v * kLanes, &sum[t][p][v], sizeof(Sum));
}

// Scales of weights (and of tokens, when they are int8) for each group: sums are floats, one group after the other.
struct GroupedTile {
  Tile tile;
  const PackedMatrix* matrix;
  int64_t panel, first_group, groups, lines_of_group;
  const float* token_scales;  // [tokens][scale_stride] or null
  const float* token_sums;    // likewise
  int64_t scale_stride;
};

inline Vec to_floats(Vec x) { return x; }
inline Vec to_floats(IntVec x) { return __builtin_convertvector(x, Vec); }

template <class Op, int kTokens, int kPanels>
PAGODA_OWN_REGISTERS void grouped_tile(const GroupedTile& g) {
  typedef typename Op::Sum Sum;
  const Tile& tile = g.tile;
  float* const at = static_cast<float*>(tile.sums);
  // Pairs were expanded less eight, quads are as stored: what a zero point still adds.
  constexpr bool kIntegers = __is_same(Sum, IntVec);
  const bool correct = kIntegers || g.matrix->zeros != nullptr;
  int64_t left = tile.lines;
  for (int64_t i = 0; i < g.groups; ++i, left -= g.lines_of_group) {
    const int64_t lines = left < g.lines_of_group ? left : g.lines_of_group;
    Sum sum[kTokens][kPanels][kVecs];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) sum[t][p][v] = Sum{};
    multiply<Op>(sum, tile.panel + i * g.lines_of_group * 64, tile.panel_stride, tile.ahead,
                 tile.token + i * g.lines_of_group * Op::kSplit, tile.token_stride, lines);
    const int64_t group = g.first_group + i;
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const GroupScale s = group_scale(*g.matrix, g.panel + p, group);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          float* const place = at + t * tile.sum_stride + p * kPanel + v * kLanes;
          Vec x = to_floats(sum[t][p][v]);
          if (correct) x -= (kIntegers ? s.zero[v] : s.zero[v] - 8.0f) * g.token_sums[t * g.scale_stride + group];
          const Vec scale = kIntegers ? s.scale[v] * g.token_scales[t * g.scale_stride + group] : s.scale[v];
          const Vec before = tile.add || i > 0 ? load(place) : Vec{};
          store(place, before + x * scale);
        }
    }
  }
}

}  // namespace
}  // namespace pagoda
