// Products of bytes (attention_bytes.hpp, attention_nibbles.hpp) by AMX: the same whole numbers, so the same bits as by vectors. Codes are
// multiplied where they lie, as rows of a tile's A, or opened into rows of bytes (four bits); their products with up to eight queries
// are turned. Values are interleaved by fours, once a block for all rows, beside the first rows' keys:
//
//   products [16 slots][16] = codes of 16 slots x queries, turned [words][rows, of four bits once for each group of a pair]
//   sums [rows][64 columns] += weights of 64 slots x values [16 x 4 slots][4 x 16 columns]
//
// By vectors the products of keys alone took 4.2 ns a slot and seven rows of some 9, since a row's dot product is an instruction for each
// four columns and sixteen slots, and keys have to be transposed for it.
#pragma once

#include "attention_tile_rows.hpp"

#if PAGODA_AMX

#include "attention_tile_products.hpp"
#include "tiles.hpp"

namespace pagoda {
namespace {

constexpr int64_t kPairBytes = 64, kTileFloats = 256, kHalfSlots = 64;  // columns of a pair of groups; numbers of a tile; slots of its inputs
constexpr int kLinesAFour = 4;  // asked for beside four slots' values
constexpr int kLinesAWeighing = 8, kLinesASixteen = 10;

// Registers: 0 to 3 products of keys, then sums; 4 weights, 6 queries, 7 keys and values.
template <typename Math>
struct ByteTiled {
  TileRows<Math>& t;
  Block<Math>& block;
  const Slots& slots;
  const int64_t begin;
  Ahead& ahead;
  const bool nibbles = t.a.shape.store == Store::int4;
  const int64_t k_pairs = t.a.shape.k_dim / kPairBytes, v_pairs = t.a.v_dim / kPairBytes;
  const int lanes = int(padded(block.count)), tiles = lanes / kLanes, halves = lanes > kHalfSlots ? 2 : 1;
  char* const keys = (char*)block.keys;  // of four bits: [pairs][kBlock][64], opened
  float* const sums = t.probs + 2 * kBlock;        // four tiles
  float* const products = sums + 4 * kTileFloats;  // four tiles

  void run() {
    ByteScales scales;
    if (nibbles) block.groups.find_largest(lanes, t.probs), scales.prepare(t.probs, lanes);
    else scales.prepare(block.v_scales, lanes);
    int number = 0;
    each_few_rows(t.rows, [&](int row, int rows) {
      with_few<Rows>(rows, [&](auto few) { attend(few, row, number++, scales); });
    });
  }

  template <int kRows>
  struct Rows {
    static constexpr int kCount = kRows;
  };

  template <typename Few>
  void attend(Few, int row, int number, const ByteScales& scales) {
    constexpr int kRows = Few::kCount;
    multiply_keys<kRows>(row, number);
    Logits found[kFewRows];
    Vec highs[kFewRows] = {};
    ByteSteps steps;
    find_steps<kRows>(t, block.count, begin, row, scales, found, highs, steps);
    for (int r = 0; r < kRows; ++r) {
      ahead.lines<kLinesAWeighing>();
      const float* const logits = t.scores + r * kBlock;
      const Vec sum = nibbles ? weigh_nibbles(logits, lanes, found[r].unit, steps.references[r], block.groups, r, t.probs, t.byte_rows)
                              : weigh_bytes(logits, lanes, found[r].unit, steps.references[r], scales, t.byte_rows.weights + r * kBlock);
      if (lanes % kHalfSlots) clear_weights(r);
      float* const total = t.totals + (row + r) * kLanes;
      store(total, fused(load(total), steps.before[r], sum * steps.now[r]));
    }
    if (nibbles) add_up_middles(t.byte_rows, kRows, block.groups.v_count, steps.now);
    for (int64_t pair = 0; pair < v_pairs; ++pair) {
      multiply_values(pair);
      for (int r = 0; r < kRows; ++r) add(steps, scales, r, pair, t.sums + (row + r) * t.v_stride + pair * kPairBytes);
    }
  }

  // ---- keys --------------------------------------------------------------------------------------------------------------

  template <int kRows>
  void multiply_keys(int row, int number) {
    const float* const queries = t.byte_rows.turned + number * k_pairs * kTileFloats;
    const int pairs = nibbles ? int(k_pairs) : 1;  // whose products are apart
    if (k_pairs == 1) load_tile<6>(queries, kLanes);
    for (int first = 0; first < tiles; first += 4)
      for (int pair = 0; pair < pairs; ++pair) {
        const int count = tiles - first < 4 ? tiles - first : 4;
        if (number == 0 && nibbles)
          for (int i = 0; i < count; ++i) open_keys(first + i, pair);
        tile_fence();
        if (nibbles && k_pairs > 1) load_tile<6>(queries + pair * kTileFloats, kLanes);
        multiply<0>(queries, first, pair, count), multiply<1>(queries, first, pair, count);
        multiply<2>(queries, first, pair, count), multiply<3>(queries, first, pair, count);
        if (number == 0 && pair == 0)
          for (int i = 0; i < count; ++i) interleave(first + i);
        else ahead.lines(count * kLinesASixteen);
        store_tile<0>(products, kLanes), store_tile<1>(products + kTileFloats, kLanes);
        store_tile<2>(products + 2 * kTileFloats, kLanes), store_tile<3>(products + 3 * kTileFloats, kLanes);
        for (int i = 0; i < count; ++i) finish<kRows>(row, first + i, pair, i);
      }
  }

  // Sixteen slots' keys by the queries, each into a register of its own: one that is stored holds up what is multiplied into it next.
  template <int kTile>
  void multiply(const float* queries, int first, int pair, int count) {
    if (kTile >= count) return;
    const int tile = first + kTile;
    zero_tile<kTile>();
    if (nibbles) {
      load_tile<7>((const float*)(keys + (pair * kBlock + tile * kLanes) * kPairBytes), kLanes);
      return add_unsigned<kTile, 7, 6>();
    }
    const float* const codes = (const float*)keys_of(tile);
    for (int64_t c = 0; c < k_pairs; ++c) {
      if (k_pairs > 1) load_tile<6>(queries + c * kTileFloats, kLanes);
      load_tile<7>(codes + c * kLanes, slots.k8.stride / 4);
      add_signed<kTile, 7, 6>();
    }
  }

  // Products of sixteen slots become logits.
  template <int kRows>
  void finish(int row, int tile, int pair, int where) {
    const float* const from = products + where * kTileFloats;
    float* const out = t.scores + tile * kLanes;
    __m512 words[8];
    transpose_eight(from, words);
    if (!nibbles) {
      const Vec scale = load(block.k_scales + tile * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) store(out + r * kBlock, (Vec)_mm512_cvtepi32_ps((__m512i)words[r]) * (scale * t.byte_rows.scales[row + r]));
      return;
    }
    const GroupScales& groups = block.groups;
    const float* const query_sums = (const float*)t.byte_rows.sums + row * groups.k_count + 2 * pair;
    const auto add = [&](int g, auto first) {
      const int64_t at = (2 * pair + g) * groups.stride + tile * kLanes;
      const Vec scale = load(groups.k_scales + at), least = load(groups.k_least + at);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vec before = first ? Vec{} : load(out + r * kBlock);
        store(out + r * kBlock, fused((Vec)_mm512_cvtepi32_ps((__m512i)words[r]), scale, fused(least, splat(query_sums[r * groups.k_count + g]), before)));
      }
    };
    if (pair == 0) add(0, Yes{});
    else add(0, No{});
    transpose_eight(from + 8, words);
    add(1, No{});
    if (pair == k_pairs - 1)
      for (int r = 0; r < kRows; ++r) store(out + r * kBlock, load(out + r * kBlock) * t.byte_rows.scales[row + r]);
  }

  // Sixteen slots' keys lie in one page, but for the last ones, behind which zeros do.
  const char* keys_of(int64_t tile) {
    const char *first = slots.k8.at[2 * tile], *second = slots.k8.at[2 * tile + 1];
    const int64_t bytes = kEight * slots.k8.stride;
    if (second == first + bytes) return first;
    memcpy(t.last_keys, first, bytes), memcpy((char*)t.last_keys + bytes, second, bytes);
    return (const char*)t.last_keys;
  }

  void open_keys(int tile, int pair) {
    const __m512i low = _mm512_set1_epi8(15);
    char* to = keys + (pair * kBlock + tile * kLanes) * kPairBytes;
    for (int eight = 2 * tile; eight < 2 * tile + 2; ++eight) {
      const char* row = slots.k8.at[eight] + pair * (kPairBytes / 2);
#pragma GCC unroll 8
      for (int i = 0; i < kEight; ++i, row += slots.k8.stride, to += kPairBytes) {
        const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)row));
        _mm512_store_si512(to, _mm512_and_si512(_mm512_mask_srli_epi16(both, 0xffff0000u, both, 4), low));
      }
    }
  }

  // ---- values ------------------------------------------------------------------------------------------------------------

  float* values_of(int64_t pair, int64_t half) const { return block.values + (2 * pair + half) * 4 * kTileFloats; }

  // Sixteen slots' values, by fours.
  void interleave(int tile) {
    for (int four = 0; four < 4; ++four) {
      ahead.lines<kLinesAFour>();
      for (int64_t pair = 0; pair < v_pairs; ++pair) interleave_four(tile, four, pair, values_of(pair, tile / 4));
    }
  }

  // Of a pair of groups, to one of the halves' four tiles.
  void interleave_pair(int tile, int64_t pair, float* half) const {
    for (int four = 0; four < 4; ++four) interleave_four(tile, four, pair, half);
  }

  void interleave_four(int tile, int four, int64_t pair, float* half) const {
    const Eights& values = slots.v8;
    const char* const row = values.at[2 * tile + four / 2] + four % 2 * 4 * values.stride;
    const auto of = [&](int i) {
      return nibbles ? open_nibbles(row + i * values.stride + pair * (kPairBytes / 2)) : _mm512_loadu_si512(row + i * values.stride + pair * kPairBytes);
    };
    const __m512i a = of(0), b = of(1), c = of(2), d = of(3);
    const __m512i ab = _mm512_unpacklo_epi8(a, b), cd = _mm512_unpacklo_epi8(c, d);
    const __m512i over_ab = _mm512_unpackhi_epi8(a, b), over_cd = _mm512_unpackhi_epi8(c, d);
    float* const to = half + (tile % 4 * 4 + four) * kLanes;
    _mm512_store_si512(to, _mm512_unpacklo_epi16(ab, cd)), _mm512_store_si512(to + kTileFloats, _mm512_unpackhi_epi16(ab, cd));
    _mm512_store_si512(to + 2 * kTileFloats, _mm512_unpacklo_epi16(over_ab, over_cd));
    _mm512_store_si512(to + 3 * kTileFloats, _mm512_unpackhi_epi16(over_ab, over_cd));
  }

  // Weights of slots that are none, up to a tile's inputs.
  void clear_weights(int r) {
    const int64_t rest = halves * kHalfSlots - lanes;
    for (int64_t i = 0; i < (nibbles ? 2 * v_pairs : 1); ++i) {
      const int64_t at = nibbles ? (i / 2 * kFewRows + r) * 2 + i % 2 : r;
      memset(t.byte_rows.weights + at * kBlock + lanes, 0, rest);
    }
  }

  void multiply_values(int64_t pair) {
    tile_fence();
    zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
    const uint8_t* const weights = t.byte_rows.weights + (nibbles ? pair * 2 * kFewRows * kBlock : 0);
    for (int half = 0; half < halves; ++half) {
      const float* const values = values_of(pair, half);
      load_tile<4>((const float*)(weights + half * kHalfSlots), kBlock / 4);
      load_tile<7>(values, kLanes), add_unsigned<0, 4, 7>();
      load_tile<7>(values + kTileFloats, kLanes), add_unsigned<1, 4, 7>();
      load_tile<7>(values + 2 * kTileFloats, kLanes), add_unsigned<2, 4, 7>();
      load_tile<7>(values + 3 * kTileFloats, kLanes), add_unsigned<3, 4, 7>();
    }
    store_tile<0>(sums, kLanes), store_tile<1>(sums + kTileFloats, kLanes);
    store_tile<2>(sums + 2 * kTileFloats, kLanes), store_tile<3>(sums + 3 * kTileFloats, kLanes);
  }

  // A row's products of one pair of groups to its sums.
  void add(const ByteSteps& steps, const ByteScales& scales, int r, int64_t pair, float* to) const {
    __m512i parts[4];
    for (int m = 0; m < 4; ++m) {
      const float* const from = sums + m * kTileFloats + (nibbles ? 2 * r : r) * kLanes;
      parts[m] = _mm512_load_si512(from);
      if (nibbles) parts[m] = _mm512_mask_loadu_epi32(parts[m], 0xf0f0, from + kLanes);
    }
    if (nibbles) add_nibbles(parts, steps, t.byte_rows, r, pair * kPairBytes, to);
    else add_bytes(parts, steps.before[r], fused(steps.now[r], 1.0f / 255.0f, scales.broken), to);
  }
};

// Queries of all rows as tiles: a column for each row of eight, of four bits for each group of a pair.
template <typename Math>
void turn_byte_queries(const TileRows<Math>& t) {
  const int64_t dim = t.a.shape.k_dim, pairs = dim / kPairBytes;
  const bool nibbles = t.a.shape.store == Store::int4;
  int32_t* to = (int32_t*)t.byte_rows.turned;
  each_few_rows(t.rows, [&](int row, int rows) {
    for (int64_t pair = 0; pair < pairs; ++pair, to += kTileFloats) {
      memset(to, 0, kTileFloats * sizeof(int32_t));
      for (int r = 0; r < rows; ++r) {
        const int8_t* const codes = t.byte_rows.queries + (row + r) * dim + pair * kPairBytes;
        for (int word = 0; word < 16; ++word) {  // of four bits: [0..15 | 32..47 | 16..31 | 48..63], the second and last of the other group
          const int quarter = word / 4, from = nibbles ? quarter % 2 * 8 + quarter / 2 * 4 + word % 4 : word;
          memcpy(to + word * kLanes + (nibbles ? quarter % 2 * 8 : 0) + r, codes + 4 * from, 4);
        }
      }
    }
  });
}

template <typename Math>
void attend_byte_tiles(TileRows<Math>& t, Block<Math>& block, const Slots& slots, int64_t begin, Ahead& ahead) {
  ByteTiled<Math>{t, block, slots, begin, ahead}.run();
}

}  // namespace
}  // namespace pagoda

#endif
