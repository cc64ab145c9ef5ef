// Up to sixteen rows (a decode step) against slots where they lie, by AMX. Keys are rows of words in a page, as a tile's A is, so none are
// transposed: sixteen slots' products with all rows are one tile, which is turned instead. Values are interleaved, as B wants them.
//
//   logits, turned [16 slots][16 rows] = keys of 16 slots [16][words] x queries, turned [words][16 rows]
//
// An element's products are summed in the same order whichever factor is A: these bits are those of many rows (attention_tiled.hpp).
// Thirty-two slots at a time, so that what vectors do (turning logits, interleaving values) lies beside products of tiles; and the sums'
// columns lie as unpacking by quarters leaves them, which takes a third of the shuffles that their own order would.
#pragma once

#include "attention_tile_rows.hpp"

#if PAGODA_AMX

#include "attention_tile_products.hpp"

namespace pagoda {
namespace {

// Lines asked for beside two slots' values, while a row is weighed, and beside two products of weights and values: spread evenly, since a core
// that has asked for some 48 waits, and one that has asked for none leaves memory idle. (4096 slots in memory, 24 layers on one core, ms: 5.1 with
// a quarter of a block's lines left to its end, 4.6 so.)
constexpr int kLinesAPair = 4, kLinesAWeight = 8, kLinesAProduct = 16;

constexpr int64_t kUnpacked = 32;  // columns that are unpacked together

// Sixteen slots' words of up to eight rows, [16][16] -> [rows][to the next row: ldo].
inline void turn_eight(const float* from, int rows, float* to, int64_t ldo) {
  __m512 a[8], b[8];
  const auto row = [&](int i) { return _mm512_castps256_ps512(_mm256_load_ps(from + i * kLanes)); };
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {  // slots 0 to 3 and 8 to 11 with the four behind each
    const int first = i % 4 + i / 4 * 8;
    a[i] = _mm512_insertf32x8(row(first), _mm256_load_ps(from + (first + 4) * kLanes), 1);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]), b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = (__m512)_mm512_unpacklo_pd((__m512d)b[i + j], (__m512d)b[i + j + 2]);
      a[i + 2 * j + 1] = (__m512)_mm512_unpackhi_pd((__m512d)b[i + j], (__m512d)b[i + j + 2]);
    }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {  // quarters of a[j]: row j of four slots, row 4 + j of them, row j of the next four, row 4 + j
    if (j < rows) _mm512_storeu_ps(to + j * ldo, _mm512_shuffle_f32x4(a[j], a[j + 4], 0x88));
    if (j + 4 < rows) _mm512_storeu_ps(to + (j + 4) * ldo, _mm512_shuffle_f32x4(a[j], a[j + 4], 0xdd));
  }
}

inline void turn_sixteen(const float* from, int rows, float* to, int64_t ldo) {
  const char* at[kLanes];
  for (int i = 0; i < kLanes; ++i) at[i] = (const char*)(from + i * kLanes);
  __m512 words[kLanes];
  transpose_words(at, 0, words);
  for (int r = 0; r < rows; ++r) store(to + r * ldo, (Vec)words[r]);
}

template <typename Math>
struct FewTiled {
  TileRows<Math>& t;
  Block<Math>& block;
  const Slots& slots;
  const int64_t begin;
  Ahead& ahead;

  int64_t tiles() const { return padded(slots.count) / kLanes; }

  void run() {
    for (int from = 0; from < block.count; from += kSpan) span(from, block.count - from < kSpan ? block.count - from : kSpan);
  }

  // `count` slots from number `from` of the block on.
  void span(int from, int count) {
    float *const logits = t.scores + from, *const weights = t.probs + from / 2;
    scores(from / kLanes, (from + padded(count)) / kLanes);
    Logits found[kRowsTogether];
    const Seen seen = t.seen(0, t.rows, begin + from, count), all{count, seen.all && seen.slots == count};
    for (int r = 0; r < t.rows; r += 8) t.rise(r, t.rows - r < 8 ? t.rows - r : 8, all, begin + from, block, from, logits + r * kBlock, found + r);
    for (int r = 0; r < t.rows; ++r) {
      ahead.lines<kLinesAWeight>();
      t.weigh(r, count, logits + r * kBlock, found[r], weights + r * kBlock, block, from);
    }
    const float* const values = block.values + from / 2 * t.v_stride;
    tile_product(weights, kBlock, values, t.v_stride, t.weight_words(padded(count)), t.v_stride, t.sums, t.v_stride, true,
                 [&] { ahead.lines<kLinesAProduct>(); });
  }

  // Of tiles first..end. Two tiles' sums are stored behind the next two's products, and turned behind those slots' values.
  void scores(int64_t first, int64_t end) {
    for (int64_t i = first; i < end; i += 2) {
      if (i % 4 == 0) multiply<0>(i);
      else multiply<2>(i);
      if (i > first) i % 4 == 0 ? put<2>(i - 2) : put<0>(i - 2);
      interleave(i);
      if (i > first) turn(i - 2);
    }
    const int64_t last = (end - 1) / 2 * 2;
    last % 4 == 0 ? put<0>(last) : put<2>(last);
    turn(last);
  }

  template <int kFirst>
  void multiply(int64_t tile) {
    const int64_t stride = slots.k8.stride / 4;
    const float* const first = (const float*)keys_of(tile, t.last_keys);
    const float* const second = tile + 1 < tiles() ? (const float*)keys_of(tile + 1, t.last_keys) : first;
    zero_tile<kFirst>(), zero_tile<kFirst + 1>();
    for (int64_t w = 0; w < t.k_words; w += kTileWords) {
      load_tile<6>(t.turned + w * kLanes, kLanes);
      load_tile<4>(first + w, stride);
      add_pairs<kFirst, 4, 6>();
      load_tile<5>(second + w, stride);
      add_pairs<kFirst + 1, 5, 6>();
    }
  }

  template <int kFirst>
  void put(int64_t tile) {
    store_tile<kFirst>(corner(tile), kLanes);
    store_tile<kFirst + 1>(corner(tile + 1), kLanes);
  }

  void turn(int64_t tile) {
    for (int64_t i = tile; i < tile + 2 && i < tiles(); ++i) {
      if (t.rows <= 8) turn_eight(corner(i), t.rows, t.scores + i * kLanes, kBlock);
      else turn_sixteen(corner(i), t.rows, t.scores + i * kLanes, kBlock);
    }
  }

  float* corner(int64_t tile) const { return t.corners + tile % 2 * (kLanes * kLanes); }

  // Sixteen slots' keys lie in one page, but for the last ones, behind which zeros do.
  const char* keys_of(int64_t tile, float* space) {
    const char *first = slots.k8.at[2 * tile], *second = slots.k8.at[2 * tile + 1];
    const int64_t bytes = kEight * slots.k8.stride;
    if (second == first + bytes) return first;
    memcpy(space, first, bytes), memcpy((char*)space + bytes, second, bytes);
    return (const char*)space;
  }

  // Values of two tiles' slots, each beside that of the other tile; a second one that is not there is zeros.
  void interleave(int64_t tile) {
    float* to = block.values + tile * (kLanes / 2) * t.v_stride;
    const bool unpacked = t.unpacked(), two = tile + 1 < tiles();
    if (!two) memset(t.turning, 0, sizeof(float) * t.v_stride);
    for (int64_t e = 2 * tile; e < 2 * tile + 2; ++e) {
      const char *first = slots.v8.at[e], *second = two ? slots.v8.at[e + 2] : (const char*)t.turning;
      const int64_t step = two ? slots.v8.stride : 0;
#pragma GCC unroll 4
      for (int64_t j = 0; j < kEight; ++j, first += slots.v8.stride, second += step, to += t.v_stride) {
        ahead.lines<kLinesAPair>();
        const uint16_t *x = (const uint16_t*)first, *y = (const uint16_t*)second;
        if (unpacked) unpack_value_pair(x, y, t.a.v_dim, to);
        else pack_value_pair(x, y, t.a.v_dim, t.v_stride, to);
      }
    }
  }

  static void unpack_value_pair(const uint16_t* first, const uint16_t* second, int64_t columns, float* to) {
    for (int64_t c = 0; c < columns; c += kUnpacked) {
      const __m512i x = _mm512_loadu_si512(first + c), y = _mm512_loadu_si512(second + c);
      _mm512_storeu_si512(to + c, _mm512_unpacklo_epi16(x, y));
      _mm512_storeu_si512(to + c + kLanes, _mm512_unpackhi_epi16(x, y));
    }
  }
};

template <typename Math>
void attend_few_tiles(TileRows<Math>& t, Block<Math>& block, const Slots& slots, int64_t begin, Ahead& ahead) {
  FewTiled<Math>{t, block, slots, begin, ahead}.run();
}

}  // namespace
}  // namespace pagoda

#endif
