// Grouped int4 by tokens in 8 bits with AMX: up to 32 tokens and two panels, whole groups of inputs.
//
// The codes of a piece were opened to signed bytes less their zero points (open_codes), so that a group's sums are right as they leave the
// tiles. Floats are what grouped_tile makes of them (packed_tile.hpp), group after group: whole sum x (scale of the row x scale of the
// token), added by one multiply-add. So the bits are those of the bodies without tiles, which serve few tokens.
//
// Three groups are in flight. While the tiles multiply group g, the integers of group g - 1 leave them and the floats of group g - 2 are
// added, a share after each product:
//
//   product of tile 0 | floats of tile 0 | product of tile 1 | floats of tile 1 | ...     of the group before the last
//
// One after the other (products, stores, floats) took 130 ns for four tiles and a group of 128 inputs on a Xeon at 3.5 GHz, so 75 to 100 ns;
// the products alone take 36, the floats alone 49. A tile that is stored at once makes the next product wait (60 to 80 ns without floats);
// stored when the next group comes to it, 45 ns.
#pragma once

#include <type_traits>

#include "packed_tile.hpp"
#include "tiles.hpp"

namespace pagoda {
namespace {

#define PAGODA_INLINE __attribute__((always_inline)) inline

constexpr int kTileTokens = 2 * kTileRows;  // of two tiles
constexpr int64_t kSumStride = 2 * kPanel;  // floats between the sums of tokens

typedef int32_t WholeTile[kTileRows][kPanel];

// Lines of a panel (whole groups, or the rest of one) as lines of signed bytes, twice as many.
// zeros: of these groups, or null where codes are stored plus eight.
inline void open_codes(const uint8_t* from, int64_t lines, int64_t lines_of_group, const uint8_t* zeros, uint8_t* to) {
  const __m512i nibble = _mm512_set1_epi8(15);
  __m512i zero = _mm512_set1_epi8(8);
  for (int64_t first = 0; first < lines; first += lines_of_group) {
    if (zeros) zero = _mm512_mullo_epi32((__m512i)load_bytes(zeros + first / lines_of_group * kPanel), _mm512_set1_epi32(0x01010101));
    const int64_t end = first + lines_of_group < lines ? first + lines_of_group : lines;
    for (int64_t i = first; i < end; ++i, to += 128) {
      const __m512i line = _mm512_loadu_si512(from + i * 64);
      _mm512_store_si512(to, _mm512_sub_epi8(_mm512_and_si512(line, nibble), zero));
      _mm512_store_si512(to + 64, _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi32(line, 4), nibble), zero));
    }
  }
}

// What is fetched while tiles multiply: each step some lines of the codes that come next, from two panels, and some of the lines that results
// will be written to. (A prompt's results lie a page apart and in no near cache: written at once they took as long as the products.)
struct Ahead {
  const uint8_t* codes;
  int64_t panels_apart;  // bytes
  int lines;             // a step
  const char* results;
  int64_t results_apart;
  int rows;              // a step

  void fetch() {
    for (int i = 0; i < lines; ++i, codes += 64) {
      __builtin_prefetch(codes, 0, 2);
      __builtin_prefetch(codes + panels_apart, 0, 2);
    }
    for (int i = 0; i < rows; ++i, results += results_apart) __builtin_prefetch(results, 1, 3);
  }
};

// The shapes for so many tokens in two tiles of them and groups of so many inputs.
inline TileShapes grouped_shapes(int64_t tokens, int64_t group) {
  const int step = static_cast<int>(group < kTileBytes ? group : kTileBytes);
  const int low = static_cast<int>(tokens < kTileRows ? tokens : kTileRows), high = static_cast<int>(tokens) - low;
  TileShapes shapes;
  for (int p = 0; p < 2; ++p) {
    shapes.set(p, low);                                        // sums of the lower tokens
    shapes.set(2 + p, high, high ? kTileBytes : 0);            // of the higher ones
    shapes.set(6 + p, step / 4);                               // panels
  }
  shapes.set(4, low, step), shapes.set(5, high, high ? step : 0);  // tokens
  return shapes;
}

// kSteps: tiles of inputs in a group. kFull: all tiles of tokens have sixteen rows.
template <int kPanels, bool kTwo, int kSteps, bool kFull>
class GroupedTiles {
 public:
  // Sums of whole groups (tile.lines of them), the panels opened. tile.sum_stride is kSumStride.
  static PAGODA_OWN_REGISTERS void run(const Tile& tile, int tokens, const Ahead& ahead) {
    GroupedTiles t(tile, tokens, ahead);
    t.multiply_all(tile.lines / tile.lines_of_group);
  }

 private:
  static constexpr int kTiles = kPanels * (kTwo ? 2 : 1);

  GroupedTiles(const Tile& whole_tile, int tokens, const Ahead& fetched)
      : tile(whole_tile), a(reinterpret_cast<const uint8_t*>(tile.token)), b(tile.panel), token_bytes(tile.token_stride * 4),
        step(tile.lines_of_group * 4 / kSteps), panel_stride(tile.panel_stride), scale_stride(tile.scale_stride),
        ahead(fetched), sums(reinterpret_cast<float*>(tile.sums)), rows{kTwo ? kTileRows : tokens, tokens - kTileRows},
        token_scales{tile.token_scales, tile.token_scales + kTileRows * tile.scale_stride} {
    if (tile.add) return;
    for (int t = 0; t < tokens; ++t)
      for (int p = 0; p < kPanels; ++p) store(sums + t * kSumStride + p * kPanel, Vec{});
  }

  PAGODA_INLINE void multiply_all(int64_t groups) {
    alignas(64) WholeTile whole[2][4];
    multiply_group<false, false>(nullptr, nullptr);
    if (groups > 1) multiply_group<true, false>(whole[0], nullptr);
    for (int64_t g = 2; g < groups; ++g) {
      next_scales(g - 2);
      multiply_group<true, true>(whole[(g - 1) & 1], whole[g & 1]);
      ++token_scales[0], ++token_scales[1];
    }
    put_away(whole[(groups - 1) & 1]);
    for (int64_t g = groups > 1 ? groups - 2 : 0; g < groups; ++g) {
      next_scales(g);
      add_all<0>(whole[g & 1]);
      ++token_scales[0], ++token_scales[1];
    }
  }

  // kStore: the integers of the group before go to `to`. kFloats: those in `from` are added.
  template <bool kStore, bool kFloats>
  PAGODA_INLINE void multiply_group(WholeTile* to, const WholeTile* from) {
    multiply_step<0, kStore, kFloats>(to, from);
    if constexpr (kSteps > 1) multiply_step<1, kStore, kFloats>(to, from);
  }

  template <int kStep, bool kStore, bool kFloats>
  PAGODA_INLINE void multiply_step(WholeTile* to, const WholeTile* from) {
    _tile_loadd(6, b, kTileBytes);
    _tile_loadd(4, a, token_bytes);
#define PAGODA_MULTIPLY(c, tokens, panel, i)                                            \
  if constexpr (kStep == 0) {                                                           \
    if constexpr (kStore) _tile_stored(c, to[i], kTileBytes);                           \
    _tile_zero(c);                                                                      \
  }                                                                                     \
  _tile_dpbssd(c, tokens, panel);                                                       \
  if constexpr (kFloats) add_rows<i, kTileRows / kSteps * kStep, kTileRows / kSteps>(from);
    PAGODA_MULTIPLY(0, 4, 6, 0)
    if constexpr (kPanels > 1) {
      _tile_loadd(7, b + panel_stride, kTileBytes);
      PAGODA_MULTIPLY(1, 4, 7, 1)
    }
    if constexpr (kTwo) {
      _tile_loadd(5, a + kTileRows * token_bytes, token_bytes);
      PAGODA_MULTIPLY(2, 5, 6, kPanels)
      if constexpr (kPanels > 1) {
        PAGODA_MULTIPLY(3, 5, 7, 3)
      }
    }
#undef PAGODA_MULTIPLY
    a += step, b += step * kPanel;
    ahead.fetch();
  }

  // Tiles in use have numbers [tokens][panels].
  PAGODA_INLINE void put_away(WholeTile* to) const {
    _tile_stored(0, to[0], kTileBytes);
    if constexpr (kPanels > 1) _tile_stored(1, to[1], kTileBytes);
    if constexpr (kTwo) _tile_stored(2, to[kPanels], kTileBytes);
    if constexpr (kTwo && kPanels > 1) _tile_stored(3, to[3], kTileBytes);
  }

  template <int i>
  PAGODA_INLINE void add_all(const WholeTile* from) const {
    if constexpr (i < kTiles) {
      add_rows<i, 0, kTileRows>(from);
      add_all<i + 1>(from);
    }
  }

  // Rows of tile number i, from row kFirst on.
  template <int i, int kFirst, int kRows>
  PAGODA_INLINE void add_rows(const WholeTile* from) const {
    constexpr int h = i / kPanels, p = i % kPanels;
    float* const to = sums + h * kTileRows * kSumStride + p * kPanel;
    const float* x = token_scales[h] + kFirst * scale_stride;
    if constexpr (kFull) {
#pragma GCC unroll 16
      for (int t = kFirst; t < kFirst + kRows; ++t) {
        add_row(from[i][t], scale[p] * x[t % 4 * scale_stride], to + t * kSumStride);
        if (t % 4 == 3) x += 4 * scale_stride;
      }
    } else {
      for (int t = kFirst; t < kFirst + kRows && t < rows[h]; ++t, x += scale_stride)
        add_row(from[i][t], scale[p] * *x, to + t * kSumStride);
    }
  }

  PAGODA_INLINE static void add_row(const int32_t* whole, Vec scale, float* to) {
    store(to, load(to) + to_floats((IntVec)load_lanes(whole)) * scale);
  }

  PAGODA_INLINE void next_scales(int64_t group) {
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      const int64_t at = p * tile.group_stride + group * kPanel;
      scale[p] = tile.wide_scales ? load(static_cast<const float*>(tile.scales) + at) : load(static_cast<const uint16_t*>(tile.scales) + at);
    }
  }

  const Tile& tile;
  const uint8_t *a, *b;
  const int64_t token_bytes, step, panel_stride, scale_stride;
  Ahead ahead;
  float* const sums;
  const int rows[2];
  const float* token_scales[2];
  Vec scale[kPanels];
};

// The tile for 1..32 tokens.
template <int kPanels>
void run_grouped_tile(const Tile& tile, int tokens, const Ahead& ahead) {
  const bool two_steps = tile.lines_of_group * 4 > kTileBytes;
  const auto run = [&](auto full, auto two) {
    (two_steps ? GroupedTiles<kPanels, decltype(two)::value, 2, decltype(full)::value>::run
               : GroupedTiles<kPanels, decltype(two)::value, 1, decltype(full)::value>::run)(tile, tokens, ahead);
  };
  const std::true_type yes;
  const std::false_type no;
  if (tokens == kTileTokens) run(yes, yes);
  else if (tokens > kTileRows) run(no, yes);
  else if (tokens == kTileRows) run(yes, no);
  else run(no, no);
}

#undef PAGODA_INLINE

}  // namespace
}  // namespace pagoda
