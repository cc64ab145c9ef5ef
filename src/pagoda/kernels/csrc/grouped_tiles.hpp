// Grouped int4 and int5 with AMX: up to 32 tokens and two panels, whole groups of inputs.
//
// A group's sums leave the tiles, are scaled as vectors do it, and are added in float32, group after group (as grouped_tile does,
// packed_tile.hpp): for tokens in 8 bits whole sum x (scale of the row x scale of the token), else sum x scale of the row, by one
// multiply-add. So sums of bytes have the bits of the bodies without tiles. Scales folded into bfloat16 weights would be rounded.
//
// Three groups are in flight. While the tiles multiply group g, the sums of group g - 1 leave them and those of group g - 2 are
// added, a share after each product:
//
//   product of tile 0 | floats of tile 0 | product of tile 1 | floats of tile 1 | ...     of the group before the last
//
// One after the other (products, stores, floats) took 130 ns for four tiles and a group of 128 bytes on a Xeon at 3.5 GHz, so 75 to 100 ns;
// the products alone take 36, the floats alone 49. A tile that is stored at once makes the next product wait (60 to 80 ns without floats);
// stored when the next group comes to it, 45 ns. The first pass over codes opens them on the way (grouped_codes.hpp).
#pragma once

#include "grouped_codes.hpp"
#include "packed_tile.hpp"
#include "tiles.hpp"

namespace pagoda {
namespace {

#define PAGODA_INLINE __attribute__((always_inline)) inline

constexpr int64_t kSumStride = 2 * kPanel;  // floats between the sums of tokens

typedef uint32_t SumTile[kTileRows][kPanel];

// Up to kTileTokens tokens and a pair of panels over some groups.
struct GroupedPass {
  const uint8_t* tokens;
  int64_t token_bytes;         // between tokens
  CodeStream* codes;
  int64_t first, groups;       // numbers in the stream
  bool opens;                  // the first to come by: group after group is opened
  float* sums;                 // [tokens][kSumStride]
  bool add;                    // to what is there
  const void* scales;          // of the first panel and group, float or bfloat16
  bool wide_scales;
  int64_t group_stride;        // scales between the panels
  const float* token_scales;   // of tokens in 8 bits, [tokens][scale_stride]
  int64_t scale_stride;
  // Lines that results will be written to, some fetched every step. (A prompt's results lie a page apart and in no near cache: written at
  // once they took as long as the products.)
  const char* results;
  int64_t results_apart;
  int rows, rows_a_step;
};

// While it lives, this thread's vectors take and give zeros for denormal numbers, as tiles of bfloat16 do.
class FlushScope {
 public:
  explicit FlushScope(bool flush) : before(_mm_getcsr()) { _mm_setcsr(flush ? before | 0x8040 : before); }
  ~FlushScope() { _mm_setcsr(before); }
  FlushScope(const FlushScope&) = delete;
  FlushScope& operator=(const FlushScope&) = delete;

 private:
  const unsigned before;
};

// Tiles of inputs in a group of so many bytes of a token: 64 bytes each, or as many less.
inline int64_t steps_of(int64_t group_bytes) { return (group_bytes + kTileBytes - 1) / kTileBytes; }

// The shapes for so many tokens in two tiles of them and groups of so many bytes.
inline TileShapes grouped_shapes(int64_t tokens, int64_t group_bytes) {
  const int step = static_cast<int>(group_bytes / steps_of(group_bytes));
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

// kBytes: tokens in 8 bits, else pairs of bfloat16. kTwo: more than sixteen tokens. kSteps: tiles of inputs in a group. kFull: all tiles of
// tokens have sixteen rows.
template <bool kBytes, int kPanels, bool kTwo, int kSteps, bool kFull>
class GroupedTiles {
 public:
  static PAGODA_OWN_REGISTERS void run(const GroupedPass& pass, int tokens) {
    GroupedTiles t(pass, tokens);
    t.multiply_all(pass.groups);
  }

 private:
  static constexpr int kTiles = kPanels * (kTwo ? 2 : 1);

  GroupedTiles(const GroupedPass& whole_pass, int tokens)
      : pass(whole_pass), a(pass.tokens), slot(pass.codes->at(pass.first)), token_bytes(pass.token_bytes), panel_bytes(pass.codes->panel_bytes()),
        step(panel_bytes / kPanel / kSteps), scale_stride(pass.scale_stride), results(pass.results), results_left(pass.rows),
        sums(pass.sums), rows{kTwo ? kTileRows : tokens, tokens - kTileRows},
        token_scales{pass.token_scales, kBytes ? pass.token_scales + kTileRows * scale_stride : nullptr} {
    if (pass.add) return;
    for (int t = 0; t < tokens; ++t)
      for (int p = 0; p < kPanels; ++p) store(sums + t * kSumStride + p * kPanel, Vec{});
  }

  PAGODA_INLINE void multiply_all(int64_t groups) {
    alignas(64) SumTile kept[2][4];
    multiply_group<false, false>(0, nullptr, nullptr);
    if (groups > 1) multiply_group<true, false>(1, kept[0], nullptr);
    for (int64_t g = 2; g < groups; ++g) {
      next_scales(g - 2);
      multiply_group<true, true>(g, kept[(g - 1) & 1], kept[g & 1]);
      if (kBytes) ++token_scales[0], ++token_scales[1];
    }
    put_away(kept[(groups - 1) & 1]);
    for (int64_t g = groups > 1 ? groups - 2 : 0; g < groups; ++g) {
      next_scales(g);
      add_all<0>(kept[g & 1]);
      if (kBytes) ++token_scales[0], ++token_scales[1];
    }
  }

  // kStore: the sums of the group before go to `to`. kFloats: those in `from` are added.
  template <bool kStore, bool kFloats>
  PAGODA_INLINE void multiply_group(int64_t group, SumTile* to, const SumTile* from) {
    if (pass.opens) pass.codes->open_through(pass.first + group);
    b = slot, slot = pass.codes->after(slot);
    tile_fence();
    multiply_step<0, kStore, kFloats>(to, from);
    if constexpr (kSteps > 1) multiply_step<1, kStore, kFloats>(to, from);
    if constexpr (kSteps > 2) multiply_step<2, kStore, kFloats>(to, from);
    if constexpr (kSteps > 3) multiply_step<3, kStore, kFloats>(to, from);
  }

  template <int kStep, bool kStore, bool kFloats>
  PAGODA_INLINE void multiply_step(SumTile* to, const SumTile* from) {
    constexpr int kFirst = kTileRows * kStep / kSteps, kEnd = kTileRows * (kStep + 1) / kSteps;
    _tile_loadd(6, b, kTileBytes);
    _tile_loadd(4, a, token_bytes);
#define PAGODA_MULTIPLY(c, tokens, panel, i)                   \
  if constexpr (kStep == 0) {                                  \
    if constexpr (kStore) _tile_stored(c, to[i], kTileBytes);  \
    _tile_zero(c);                                             \
  }                                                            \
  if constexpr (kBytes) _tile_dpbssd(c, tokens, panel);        \
  else _tile_dpbf16ps(c, tokens, panel);                       \
  if constexpr (kFloats) add_rows<i, kFirst, kEnd>(from);
    PAGODA_MULTIPLY(0, 4, 6, 0)
    if constexpr (kPanels > 1) {
      _tile_loadd(7, b + panel_bytes, kTileBytes);
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
    if (pass.opens) pass.codes->share();
    for (int i = 0; i < pass.rows_a_step && results_left > 0; ++i, --results_left, results += pass.results_apart) __builtin_prefetch(results, 1, 3);
  }

  // Tiles in use have numbers [tokens][panels].
  PAGODA_INLINE void put_away(SumTile* to) const {
    _tile_stored(0, to[0], kTileBytes);
    if constexpr (kPanels > 1) _tile_stored(1, to[1], kTileBytes);
    if constexpr (kTwo) _tile_stored(2, to[kPanels], kTileBytes);
    if constexpr (kTwo && kPanels > 1) _tile_stored(3, to[3], kTileBytes);
  }

  template <int i>
  PAGODA_INLINE void add_all(const SumTile* from) const {
    if constexpr (i < kTiles) {
      add_rows<i, 0, kTileRows>(from);
      add_all<i + 1>(from);
    }
  }

  // Rows kFirst..kEnd of tile number i.
  template <int i, int kFirst, int kEnd>
  PAGODA_INLINE void add_rows(const SumTile* from) const {
    constexpr int h = i / kPanels, p = i % kPanels;
    float* const to = sums + h * kTileRows * kSumStride + p * kPanel;
    const float* x = kBytes ? token_scales[h] + kFirst * scale_stride : nullptr;
    if constexpr (kFull) {
#pragma GCC unroll 16
      for (int t = kFirst; t < kEnd; ++t) {
        add_row(from[i][t], kBytes ? scale[p] * x[(t - kFirst) % 4 * scale_stride] : scale[p], to + t * kSumStride);
        if (kBytes && (t - kFirst) % 4 == 3) x += 4 * scale_stride;
      }
    } else {
      for (int t = kFirst; t < kEnd && t < rows[h]; ++t, x += kBytes ? scale_stride : 0)
        add_row(from[i][t], kBytes ? scale[p] * *x : scale[p], to + t * kSumStride);
    }
  }

  PAGODA_INLINE static void add_row(const uint32_t* sum, Vec scale, float* to) {
    const UintVec bits = load_lanes(sum);
    store(to, fused(kBytes ? to_floats((IntVec)bits) : (Vec)bits, scale, load(to)));
  }

  PAGODA_INLINE void next_scales(int64_t group) {
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      const int64_t at = p * pass.group_stride + group * kPanel;
      scale[p] = pass.wide_scales ? load(static_cast<const float*>(pass.scales) + at) : load(static_cast<const uint16_t*>(pass.scales) + at);
    }
  }

  const GroupedPass& pass;
  const uint8_t *a, *b = nullptr, *slot;
  const int64_t token_bytes, panel_bytes, step, scale_stride;
  const char* results;
  int results_left;
  float* const sums;
  const int rows[2];
  const float* token_scales[2];
  Vec scale[kPanels];
};

// For 1..32 tokens.
template <bool kBytes, int kPanels, int kSteps>
void run_grouped_pass(const GroupedPass& pass, int tokens) {
  if (tokens == 2 * kTileRows) GroupedTiles<kBytes, kPanels, true, kSteps, true>::run(pass, tokens);
  else if (tokens > kTileRows) GroupedTiles<kBytes, kPanels, true, kSteps, false>::run(pass, tokens);
  else if (tokens == kTileRows) GroupedTiles<kBytes, kPanels, false, kSteps, true>::run(pass, tokens);
  else GroupedTiles<kBytes, kPanels, false, kSteps, false>::run(pass, tokens);
}

template <bool kBytes, int kPanels>
void run_grouped_pass(const GroupedPass& pass, int tokens, int64_t steps) {
  if (steps == 1) return run_grouped_pass<kBytes, kPanels, 1>(pass, tokens);
  if (steps == 2) return run_grouped_pass<kBytes, kPanels, 2>(pass, tokens);
  if constexpr (!kBytes) {
    if (steps == 3) return run_grouped_pass<kBytes, kPanels, 3>(pass, tokens);
    run_grouped_pass<kBytes, kPanels, 4>(pass, tokens);
  }
}

#undef PAGODA_INLINE

}  // namespace
}  // namespace pagoda
