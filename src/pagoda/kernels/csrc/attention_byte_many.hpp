// Products of bytes by AMX for rows that all see all slots: those of several sequences that share a beginning. Sixteen at a time, slots down and
// rows across as in attention_tiled.hpp, so that what is done beside products takes a register for sixteen rows of a slot:
//
//   products [16 slots][16 rows]   = codes of 16 slots  x  queries, turned [words][16 rows], of four bits once for each group of a pair
//   sums     [16 columns][16 rows] = values, turned [16][64 slots]  x  weights [16 x 4 slots][16 rows]
//
// Whole numbers are the same in any order, and all others are added up in the order of up to eight rows (attention_bytes.hpp, attention_nibbles.hpp):
// what is a register's lane there is a register here. So the bits are theirs. (24 layers, 32 sequences on 2048 shared slots and 80 of their own, two
// cores: int4 14.1 ms eight rows at a time and 9.7 so, int8 11.4 and 7.5, bfloat16 8.6.)
#pragma once

#include "attention_byte_tiles.hpp"
#include "attention_tiled_parts.hpp"

#if PAGODA_AMX

namespace pagoda {
namespace {

constexpr int64_t kRows16 = kRowsTogether;

// What becomes of the lanes of a vector's sum, where its lanes are registers: as each_row_of() and total_of() add.
inline Vec halves_of(Vec (&sums)[kLanes]) {
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int w = 0; w < half; ++w) sums[w] += sums[w + half];
  return sums[0];
}

// Four registers' lowest bytes as the bytes of each word.
inline __m512i four_bytes(__m512i a, __m512i b, __m512i c, __m512i d) {
  const auto pick = [](__m512i low, __m512i high, int mask) { return _mm512_ternarylogic_epi32(_mm512_set1_epi32(mask), low, high, 0xca); };
  const __m512i two = pick(a, _mm512_slli_epi32(b, 8), 0xff), three = pick(two, _mm512_slli_epi32(c, 16), 0xffff);
  return pick(three, _mm512_slli_epi32(d, 24), 0xffffff);
}

// Queries of sixteen rows: tiles for each pair of groups (of four bits for each group, the other's words being zeros), then scales and for each group sums of codes.
struct Queries16 {
  int64_t pairs, tiles, groups;
  explicit Queries16(const PageShape& p)
      : pairs(p.k_dim / kPairBytes), tiles(p.store == Store::int4 ? 2 * pairs : pairs), groups(p.store == Store::int4 ? 2 * pairs : 0) {}
  int64_t floats() const { return tiles * kTileFloats + (1 + groups) * kLanes; }
};

template <typename Math>
void turn_many_queries(const TileRows<Math>& t) {
  const Queries16 shape(t.a.shape);
  const int64_t dim = t.a.shape.k_dim;
  const bool nibbles = shape.groups > 0;
  for (int first = 0; first < t.rows; first += kRows16) {
    float* const at = t.byte_rows.turned + first / kRows16 * shape.floats();
    float* const scales = at + shape.tiles * kTileFloats;
    memset(at, 0, shape.floats() * sizeof(float));
    for (int r = 0; r < kRows16 && first + r < t.rows; ++r) {
      const int row = first + r;
      const int8_t* const codes = t.byte_rows.queries + row * dim;
      for (int64_t pair = 0; pair < shape.pairs; ++pair)
        for (int word = 0; word < 16; ++word) {  // of four bits as attention_byte_tiles.hpp has them: [0..15 | 32..47 | 16..31 | 48..63]
          const int quarter = word / 4, from = nibbles ? quarter % 2 * 8 + quarter / 2 * 4 + word % 4 : word;
          const int64_t tile = nibbles ? 2 * pair + quarter % 2 : pair;
          memcpy(at + tile * kTileFloats + word * kLanes + r, codes + pair * kPairBytes + 4 * from, 4);
        }
      scales[r] = t.byte_rows.scales[row];
      for (int64_t g = 0; g < shape.groups; ++g) scales[(1 + g) * kLanes + r] = ((const float*)t.byte_rows.sums)[row * shape.groups + g];
    }
  }
}

// Registers: 0 to 3 products, 4 weights, 5 and 6 queries, 7 keys and values.
template <typename Math>
struct ManyBytes {
  ByteTiled<Math> few;  // of whose ways this has some
  TileRows<Math>& t;
  Block<Math>& block;
  Ahead& ahead;
  const Queries16 shape;
  const bool nibbles;
  const int64_t v_tiles;
  float* const logits;    // [kBlock][16 rows]
  float* const products;  // four tiles
  float* const weights;   // [groups of V][2][16 x 4 slots][16 rows]
  ByteScales scales;
  const PartEnd end;
  int lines;  // asked for beside a quarter of what sixteen rows take

  ManyBytes(TileRows<Math>& rows, Block<Math>& slots_block, const Slots& slots, int64_t begin, Ahead& soon, PartEnd part_end)
      : few{rows, slots_block, slots, begin, soon}, t(rows), block(slots_block), ahead(soon), shape(rows.a.shape), nibbles(shape.groups > 0),
        v_tiles(rows.a.v_dim / kLanes), logits(rows.scores), products(rows.probs), weights((float*)rows.byte_rows.weights),
        end(part_end), lines(int(soon.left * kRows16 / (4 * rows.rows)) + 1) {}

  void run() {
    if (nibbles) block.groups.find_largest(kBlock, t.probs), scales.prepare(t.probs, kBlock);
    else scales.prepare(block.v_scales, kBlock);
    open();
    for (int first = 0; first < t.rows; first += kRows16) {
      attend(first);
      if (end != PartEnd::none) keep_part(t, first, end == PartEnd::kept_first);
    }
    t.has_sums = true;
  }

  // Keys of four bits as bytes; values of both, [2 x 64 slots][tiles of columns][16 columns][64 slots].
  void open() {
    if (nibbles)
      for (int64_t pair = 0; pair < few.k_pairs; ++pair)
        for (int tile = 0; tile < kBlock / kLanes; ++tile) few.open_keys(tile, int(pair));
    float* const room = block.values + kBlock / 4 * t.a.v_dim;  // four tiles: interleaved, [four columns of each quarter][4 slots]
    for (int64_t half = 0; half < 2; ++half)
      for (int64_t pair = 0; pair < few.v_pairs; ++pair) {
        for (int tile = 0; tile < 4; ++tile) few.interleave_pair(int(4 * half) + tile, pair, room);
        for (int m = 0; m < 4; ++m) {
          const char* rows[kLanes];
          for (int i = 0; i < kLanes; ++i) rows[i] = (const char*)(room + m * kTileFloats + i * kLanes);
          __m512 columns[kLanes];
          transpose_words(rows, 0, columns);
          for (int i = 0; i < kLanes; ++i) {  // column 4 m + i % 4 of a quarter, which of four bits is every other of the pair
            const int64_t quarter = nibbles ? i / 4 % 2 * 2 + i / 8 : i / 4;
            _mm512_store_ps(values_of(half, 4 * pair + quarter) + (4 * m + i % 4) * kLanes, columns[i]);
          }
        }
      }
    tile_fence();
  }

  float* values_of(int64_t half, int64_t tile) const { return block.values + (half * v_tiles + tile) * kTileFloats; }

  void attend(int first) {
    const float* const queries = t.byte_rows.turned + first / kRows16 * shape.floats();
    const Vec highs = nibbles ? multiply_keys<true>(queries) : multiply_keys<false>(queries);
    // As ByteSteps::rise().
    const Vec old = load(t.tops + first), top = maximum(old, whole_above(highs)), reference = select(highs == splat(-kInf), Vec{}, highs);
    const auto none = top == splat(-kInf);
    const Vec before = select(none, Vec{}, exp2_of(old - top)), now = select(none, Vec{}, exp2_of(reference - top));
    store(t.tops + first, top);
    const int64_t groups = nibbles ? block.groups.v_count : 1;
    Vec middles[kMostAcross / kInt4Group];
    if (nibbles)
      for (int64_t g = 0; g < groups; g += 2) weigh<true>(first, g, reference, before, now, middles + g);
    else weigh<false>(first, 0, reference, before, now, middles);
    tile_fence();
    multiply_values(first, before, now, middles);
  }

  // ---- keys --------------------------------------------------------------------------------------------------------------

  // Logits of all slots; returns the largest of logit * unit + logs.
  template <bool kNibbles>
  Vec multiply_keys(const float* queries) {
    const float* const row_scales = queries + shape.tiles * kTileFloats;
    const Vec scale = load(row_scales), unit = splat(t.plain_unit);
    constexpr int kTiles = int(kBlock / kLanes);
    const int units = kNibbles ? kTiles * int(shape.pairs) : kTiles;
    Vec high[2] = {splat(-kInf), splat(-kInf)};
    const auto multiply = [&](int i) {
      if (i >= units) return;
      if (i % 2) products_of<kNibbles, 2, 3>(queries, i);
      else products_of<kNibbles, 0, 1>(queries, i);
    };
    if (shape.pairs == 1) load_queries<kNibbles>(queries, 0);
    multiply(0);
    for (int i = 0; i < units; ++i) {
      multiply(i + 1);
      float* const from = products + i % 2 * 2 * kTileFloats;
      if (i % 2) store_tile<2>(from, kLanes);
      else store_tile<0>(from, kLanes);
      if (kNibbles) {
        if (i % 2) store_tile<3>(from + kTileFloats, kLanes);
        else store_tile<1>(from + kTileFloats, kLanes);
      }
      tile_fence();
      if (i % 2) ahead.lines(2 * lines / kTiles + 1);
      const int64_t pair = kNibbles ? i % shape.pairs : 0, tile = kNibbles ? i / shape.pairs : i;
      float* const out = logits + tile * kLanes * kLanes;
      const int64_t slot = tile * kLanes;
      if (!kNibbles) {
#pragma GCC unroll 16
        for (int s = 0; s < kLanes; ++s) {
          const Vec x = whole(from + s * kLanes) * (splat(block.k_scales[slot + s]) * scale);
          store(out + s * kLanes, x);
          high[s % 2] = maximum(fused(x, unit, splat(scales.logs[slot + s])), high[s % 2]);
        }
        continue;
      }
      const GroupScales& groups = block.groups;
      const float *const low = groups.k_scales + 2 * pair * groups.stride + slot, *const least = groups.k_least + 2 * pair * groups.stride + slot;
      const Vec sum = load(row_scales + (1 + 2 * pair) * kLanes), other = load(row_scales + (2 + 2 * pair) * kLanes);
      const bool last = pair == shape.pairs - 1;
      const auto each = [&](auto first_pair, auto last_pair) {
#pragma GCC unroll 16
        for (int s = 0; s < kLanes; ++s) {
          Vec x = first_pair ? Vec{} : load(out + s * kLanes);
          x = fused(whole(from + s * kLanes), splat(low[s]), fused(splat(least[s]), sum, x));
          x = fused(whole(from + kTileFloats + s * kLanes), splat(low[groups.stride + s]), fused(splat(least[groups.stride + s]), other, x));
          if (last_pair) {
            x *= scale;
            high[s % 2] = maximum(fused(x, unit, splat(scales.logs[slot + s])), high[s % 2]);
          }
          store(out + s * kLanes, x);
        }
      };
      if (pair == 0 && last) each(Yes{}, Yes{});
      else if (pair == 0) each(Yes{}, No{});
      else if (last) each(No{}, Yes{});
      else each(No{}, No{});
    }
    return maximum(high[0], high[1]);
  }

  static Vec whole(const float* from) { return (Vec)_mm512_cvtepi32_ps(_mm512_load_si512(from)); }

  // Sixteen slots' products: of four bits with a pair of groups, each in a register; else of all columns.
  template <bool kNibbles, int kTo, int kOther>
  void products_of(const float* queries, int i) {
    zero_tile<kTo>();
    if (kNibbles) {
      const int64_t pair = i % shape.pairs, tile = i / shape.pairs;
      load_tile<7>((const float*)(few.keys + (pair * kBlock + tile * kLanes) * kPairBytes), kLanes);
      if (shape.pairs > 1) load_queries<kNibbles>(queries, pair);
      zero_tile<kOther>();
      add_unsigned<kTo, 7, 6>(), add_unsigned<kOther, 7, 5>();
      return;
    }
    const float* const codes = (const float*)few.keys_of(i);
    tile_fence();
    for (int64_t c = 0; c < shape.pairs; ++c) {
      if (shape.pairs > 1) load_queries<kNibbles>(queries, c);
      load_tile<7>(codes + c * kLanes, few.slots.k8.stride / 4);
      add_signed<kTo, 7, 6>();
    }
  }

  template <bool kNibbles>
  static void load_queries(const float* queries, int64_t pair) {
    load_tile<6>(queries + (kNibbles ? 2 : 1) * pair * kTileFloats, kLanes);
    if (kNibbles) load_tile<5>(queries + (2 * pair + 1) * kTileFloats, kLanes);
  }

  // ---- weights -----------------------------------------------------------------------------------------------------------

  // Weights as bytes of a pair of groups of V from number `group` on, or of all columns; denominators, and the groups' sums of p * middle.
  // Eight of each sixteen slots at a time: that many registers add up what three sums are.
  template <bool kNibbles>
  PAGODA_OWN_REGISTERS void weigh(int first, int64_t group, Vec reference, Vec before, Vec now, Vec* middles) {
    const Vec unit = splat(t.plain_unit);
    float* const totals = t.totals + first * kLanes;
    const GroupScales& groups = block.groups;
    const int64_t at = group * groups.stride;
    const float *const low = kNibbles ? groups.v_scales + at : scales.units, *const other = low + groups.stride;
    const float *const middle = groups.v_middles + at, *const other_middle = middle + groups.stride;
    float* const out = weights + group * (2 * kTileFloats);
    alignas(64) float partial[2][kLanes][kLanes];
    for (int w = 0; w < kLanes; w += 8) {
      Vec sum[8] = {}, left[8] = {}, right[8] = {};
      for (int64_t slot = w; slot < kBlock; slot += kLanes) {
        ahead.lines(lines / 8 + 1);
#pragma GCC unroll 2
        for (int four = 0; four < 8; four += 4) {
          __m512i bytes[4], others[4];
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) {
            const int64_t s = slot + four + i;
            Vec p = Pairs::weight(fused_less(load(logits + s * kLanes), unit, reference));
            sum[four + i] += p;
            if (kNibbles) {
              p = p * 255.0f;
              left[four + i] = fused(p, splat(middle[s]), left[four + i]), right[four + i] = fused(p, splat(other_middle[s]), right[four + i]);
              others[i] = byte_of(p, splat(other[s]));
            }
            bytes[i] = byte_of(p, splat(low[s]));
          }
          float* const to = out + (slot + four) / 4 * kLanes;
          _mm512_store_si512(to, four_bytes(bytes[0], bytes[1], bytes[2], bytes[3]));
          if (kNibbles) _mm512_store_si512(to + 2 * kTileFloats, four_bytes(others[0], others[1], others[2], others[3]));
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        float* const total = totals + (w + i) * kLanes;
        if (group == 0) store(total, fused(load(total), before, sum[i] * now));
        if (kNibbles) store(partial[0][w + i], left[i]), store(partial[1][w + i], right[i]);
      }
    }
    if (!kNibbles) return;
    for (int i = 0; i < 2; ++i) {
      Vec each[kLanes];
      for (int w = 0; w < kLanes; ++w) each[w] = load(partial[i][w]);
      middles[i] = halves_of(each) * now * (1.0f / 255.0f);  // as add_up_middles()
    }
  }

  // ---- values ------------------------------------------------------------------------------------------------------------

  void multiply_values(int first, Vec before, Vec now, const Vec* middles) {
    const Vec scale = nibbles ? now * (1.0f / (255.0f * 16.0f)) : fused(now, 1.0f / 255.0f, scales.broken);
    for (int64_t tile = 0; tile < v_tiles; tile += 4) {  // of a pair of groups, of four bits
      add_columns(tile);
      store_tile<0>(products, kLanes), store_tile<1>(products + kTileFloats, kLanes);
      finish_columns(first, tile, products, before, scale, nibbles ? middles[tile / 2] : Vec{});
      store_tile<2>(products + 2 * kTileFloats, kLanes), store_tile<3>(products + 3 * kTileFloats, kLanes);
      finish_columns(first, tile + 2, products + 2 * kTileFloats, before, scale, nibbles ? middles[tile / 2 + 1] : Vec{});
    }
  }

  void add_columns(int64_t tile) const {
    zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
    for (int64_t half = 0; half < 2; ++half) {
      const float* const of = weights + (nibbles ? tile : half) * kTileFloats + (nibbles ? half * kTileFloats : 0);
      load_tile<4>(of, kLanes);
      load_tile<7>(values_of(half, tile), kLanes), add_signed_unsigned<0, 7, 4>();
      load_tile<6>(values_of(half, tile + 1), kLanes), add_signed_unsigned<1, 6, 4>();
      if (nibbles) load_tile<4>(of + 2 * kTileFloats, kLanes);
      load_tile<7>(values_of(half, tile + 2), kLanes), add_signed_unsigned<2, 7, 4>();
      load_tile<6>(values_of(half, tile + 3), kLanes), add_signed_unsigned<3, 6, 4>();
    }
  }

  // Two tiles' products to the sums of their columns.
  void finish_columns(int first, int64_t tile, const float* from, Vec before, Vec scale, Vec middle) {
    tile_fence();
    ahead.lines(lines / 2 + 1);
    float* const sums = t.sums + first * t.v_stride + tile * kTileFloats;
    const auto all = [&](auto begun, auto of_groups) {
#pragma GCC unroll 4
      for (int c = 0; c < 2 * kLanes; ++c) {
        const Vec x = whole(from + c * kLanes), here = of_groups ? fused(x, scale, middle) : x * scale;
        store(sums + c * kLanes, fused(begun ? load(sums + c * kLanes) : Vec{}, before, here));
      }
    };
    if (t.has_sums) nibbles ? all(Yes{}, Yes{}) : all(Yes{}, No{});
    else nibbles ? all(No{}, Yes{}) : all(No{}, No{});
  }
};

template <typename Math>
void attend_many_bytes(TileRows<Math>& t, Block<Math>& block, const Slots& slots, int64_t begin, Ahead& ahead, PartEnd end) {
  ManyBytes<Math>(t, block, slots, begin, ahead, end).run();
}

}  // namespace
}  // namespace pagoda

#endif
