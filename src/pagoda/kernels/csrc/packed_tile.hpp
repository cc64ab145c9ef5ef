// The inner loops: a tile of tokens by panels.
//
//   sum[token][panel] += line of the panel x step of the token
//
// The panels of the next tile are fetched into the second cache meanwhile. Into the first they drove the tokens out: eight tokens,
// [4864, 896] in bfloat16 on one core, 500 us; so 329 us, where the weights alone need 272 us and the products 324 us.
//
// A row's sum runs over the inputs one after the other whatever the tile is, so the bits of a result do not depend on it.
#pragma once

#include "packed_fields.hpp"

// g++ 12 keeps the sums of a tile in registers only when its loop is compiled alone.
#define PAGODA_OWN_REGISTERS __attribute__((noinline))

namespace pagoda {
namespace {

struct Tile {
  const uint8_t* panel;  // first line of the first panel
  int64_t panel_stride;  // bytes
  const uint8_t* ahead;  // what comes after these panels, fetched meanwhile: a line of each panel every ahead_step bytes
  int64_t ahead_step;
  const uint32_t* token;
  int64_t token_stride;  // steps
  int64_t lines;
  uint32_t* sums;        // [tokens][sum_stride], panels side by side
  int64_t sum_stride;
  bool add;              // to what is there
  // Where scales belong to groups of inputs, sums are floats, one group after the other.
  const void* scales;          // of the first panel and group, float or bfloat16
  const uint8_t* zeros;        // likewise, or null
  int32_t middle;              // what Floats and Pairs come less
  bool wide_scales;
  int64_t group_stride;        // scales of a panel
  int64_t lines_of_group;
  const float* token_scales;  // [tokens][scale_stride] or null
  const uint32_t* token_sums;  // likewise
  int64_t scale_stride;
};

template <class Op, int kTokens, int kPanels>
using Sums = typename Op::Sum[kTokens][kPanels][kVecs];

template <class Op, int kTokens, int kPanels>
__attribute__((always_inline)) inline void multiply(Sums<Op, kTokens, kPanels>& sum, const Tile& tile, const uint8_t* panel,
                                                    const uint8_t* ahead, const uint32_t* token, int64_t lines) {
  const int64_t panel_stride = tile.panel_stride, stride = tile.token_stride, ahead_step = tile.ahead_step;
  // Every third token has a pointer of its own: with one for all, g++ 12 ran out of registers for the distances.
  const uint32_t* rows[(kTokens + 2) / 3];
#pragma GCC unroll 4
  for (int r = 0; r < (kTokens + 2) / 3; ++r) rows[r] = token + 3 * r * stride;
  for (int64_t i = 0; i < lines; ++i, panel += 64, ahead += ahead_step) {
    typename Op::Line line[kPanels][kVecs];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      __builtin_prefetch(ahead + p * panel_stride, 0, 2);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) line[p][v] = Op::open(load_lanes(panel + p * panel_stride + v * sizeof(UintVec)));
    }
#pragma GCC unroll 16
    for (int n = 0; n < Op::kSteps; ++n) {
      UintVec numbers[kPanels][kVecs];
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) numbers[p][v] = Op::numbers(line[p][v], n);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        const auto x = Op::step(rows[t / 3][t % 3 * stride + n]);
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 4
          for (int v = 0; v < kVecs; ++v) sum[t][p][v] = Op::add(sum[t][p][v], numbers[p][v], x);
      }
    }
#pragma GCC unroll 4
    for (auto& row : rows) {
      row += Op::kSteps;
      __asm__("" : "+r"(row));
    }
  }
}

// A stretch of inputs without scales between.
template <class Op, int kTokens, int kPanels>
PAGODA_OWN_REGISTERS void plain_tile(const Tile& tile) {
  constexpr bool kIntegers = __is_same(typename Op::Sum, IntVec);
  Sums<Op, kTokens, kPanels> sum;
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        const UintVec first = kIntegers ? splat_word(tile.token_sums[t]) : UintVec{};
        const uint32_t* const at = tile.sums + t * tile.sum_stride + p * kPanel + v * kLanes;
        sum[t][p][v] = (typename Op::Sum)(tile.add ? load_lanes(at) : first);
      }
  multiply<Op, kTokens, kPanels>(sum, tile, tile.panel, tile.ahead, tile.token, tile.lines);
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v)
        memcpy(tile.sums + t * tile.sum_stride + p * kPanel + v * kLanes, &sum[t][p][v], sizeof(UintVec));
}

// What zero points add to a sum, per unit of a token's own sum (negative for integers, see Tokens): Floats and Pairs come
// less the middle.
inline IntVec zero_of(const uint8_t* zeros, int32_t, IntVec) { return load_bytes(zeros); }
inline Vec zero_of(const uint8_t* zeros, int32_t middle, Vec) { return __builtin_convertvector(middle - load_bytes(zeros), Vec); }

// The floats lie in memory, so that as many integers stay in registers as without groups: what opens codes then serves eleven tokens. (Half as many
// tokens beside floats in registers: 32 tokens of int4 a tenth slower on a Xeon, whose two ports that multiply open codes as well.)
template <class Op, int kTokens, int kPanels>
PAGODA_OWN_REGISTERS void grouped_tile(const Tile& tile) {
  typedef typename Op::Sum Sum;
  constexpr bool kIntegers = __is_same(Sum, IntVec);
  const int64_t scale_stride = tile.scale_stride, sum_stride = tile.sum_stride, group_stride = tile.group_stride;
  const uint8_t* const zeros = tile.zeros;
  float* const sums = reinterpret_cast<float*>(tile.sums);
  if (!tile.add)
    for (int t = 0; t < kTokens; ++t) memset(sums + t * sum_stride, 0, kPanels * kPanel * sizeof(float));
  for (int64_t line = 0, group = 0; line < tile.lines; line += tile.lines_of_group, ++group) {
    const int64_t left = tile.lines - line;
    const uint32_t* const token_sums = tile.token_sums + group;
    Sums<Op, kTokens, kPanels> sum;
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v)
          sum[t][p][v] = (Sum)splat_word(kIntegers && !zeros ? token_sums[t * scale_stride] : 0);
    multiply<Op, kTokens, kPanels>(sum, tile, tile.panel + line * 64, tile.ahead + line * tile.ahead_step,
                                   tile.token + line * Op::kSteps, left < tile.lines_of_group ? left : tile.lines_of_group);
    if (zeros) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          const Sum zero = zero_of(zeros + p * group_stride + group * kPanel + v * kLanes, tile.middle, Sum{});
#pragma GCC unroll 16
          for (int t = 0; t < kTokens; ++t) sum[t][p][v] = fused(zero, (Sum)splat_word(token_sums[t * scale_stride]), sum[t][p][v]);
        }
    }
    const float* const token_scales = tile.token_scales + group;
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        const int64_t at = p * group_stride + group * kPanel + v * kLanes;
        const Vec scale = tile.wide_scales ? load(static_cast<const float*>(tile.scales) + at)
                                           : load(static_cast<const uint16_t*>(tile.scales) + at);
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
          float* const to = sums + t * sum_stride + p * kPanel + v * kLanes;
          if constexpr (kIntegers) store(to, fused(to_floats(sum[t][p][v]), scale * token_scales[t * scale_stride], load(to)));
          else store(to, fused(sum[t][p][v], scale, load(to)));
        }
      }
  }
}

// ---- tables of tiles -------------------------------------------------------------------------------------------------------

// Panels of a tile of so many tokens.
constexpr int panels_for(int tokens) {
  if (kLanes != 16) return tokens <= 2 && kLanes == 8 ? 2 : 1;
  return tokens <= 6 ? 4 : 2;
}

// For 1..Op::kDirect tokens: the tile of panels_for(tokens), and that of one panel.
template <class Op, bool kGrouped>
struct Tiles {
  typedef void (*Run)(const Tile&);
  Run wide[Op::kDirect + 1], narrow[Op::kDirect + 1];
  template <int kTokens>
  constexpr void fill() {
    if constexpr (kGrouped) {
      wide[kTokens] = grouped_tile<Op, kTokens, panels_for(kTokens)>;
      narrow[kTokens] = grouped_tile<Op, kTokens, 1>;
    } else {
      wide[kTokens] = plain_tile<Op, kTokens, panels_for(kTokens)>;
      narrow[kTokens] = plain_tile<Op, kTokens, 1>;
    }
    if constexpr (kTokens > 1) fill<kTokens - 1>();
  }
  constexpr Tiles() : wide(), narrow() { fill<Op::kDirect>(); }
};

}  // namespace
}  // namespace pagoda
