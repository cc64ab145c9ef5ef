// Many rows against a block by AMX, sixteen rows at a time, with slots down and rows across, so that a register holds one slot of all sixteen:
//
//   logits [16 slots][16 rows]     = keys of 16 slots, where they lie [16][words]  x  queries, turned [words][16 rows]
//   sums   [16 columns][16 rows]  += values, turned [16][pairs of slots]           x  weights [pairs of slots][16 rows]
//
// Maxima, factors and denominators are registers then, no key is transposed, and weights become a tile's words where they are. An element's
// products are summed in the same order whichever factor is first: these are the bits of few rows (attention_tiled_few.hpp). While sixteen
// rows are weighed, the next ones' logits and the last ones' sums are multiplied.
//
// Sixty-four slots at a time: with 128 keys, values, logits and weights fill the first cache, and what passes through it (queries, sums) drives
// them out (16 rows and 128 slots, one core: 640 to 750 ns, 510 in two halves).
#pragma once

#include "attention_tile_rows.hpp"

#if PAGODA_AMX

#include "attention_tile_products.hpp"

namespace pagoda {
namespace {

constexpr int kGroups = kSpan / kLanes;            // of sixteen slots, of a span
constexpr int kSteps = 2 * kGroups;                // of a span's weights, between which tiles are multiplied

// Sixteen rows' share of a span.
struct Rows16 {
  int first = -1, count = 0;  // rows; first < 0: none
  Seen seen = {0, false};
  int groups() const { return (seen.slots + kLanes - 1) / kLanes; }
  int pairs() const { return (seen.slots + 2 * kLanes - 1) / (2 * kLanes); }  // of groups
};

template <typename Math>
struct ManyTiled {
  TileRows<Math>& t;
  Block<Math>& block;
  const Slots& slots;
  const int64_t begin;
  Ahead& ahead;
  const int v_tiles = int(t.v_stride / kLanes);
  const char* keys[kBlock / kLanes];  // of sixteen slots each
  int64_t key_words = 0;              // from one slot's to the next
  int64_t from = 0;                   // the span's first slot, in the block
  Rows16 last, next;
  const float* last_weights = nullptr;
  float* next_logits = nullptr;
  int sums_done = 0;
  Vec highs[2];  // of the next rows' logits

  void run() {
    find_keys();
    turn_values();
    const PageShape& p = t.a.shape;  // of the next block's lines, what is due beside each sixteen rows
    const int turns = (t.rows + kRowsTogether - 1) / kRowsTogether * int((block.count + kSpan - 1) / kSpan);
    const int lines = int(kBlock * p.page_bytes / p.page_size / 64 / turns) + 1;
    for (from = 0; from < block.count; from += kSpan) span(lines);
  }

  void span(int lines) {
    int turn = 0;
    const auto logits = [&](int i) { return t.scores + (i & 1) * (kSpan * kLanes + kLanes * kLanes * 2); };
    const auto weights = [&](int i) { return t.probs + (i & 1) * (kSpan / 2 * kLanes + kLanes * kLanes * 2); };
    last = Rows16{}, next = rows_from(0), next_logits = logits(0);
    load_queries();
    highs[0] = highs[1] = splat(-kInf);
    for (int step = 0; step < kSteps; ++step) beside(step);
    while (next.first >= 0) {
      const Rows16 own = next;
      next = rows_from(own.first + kRowsTogether), next_logits = logits(turn + 1), sums_done = 0;
      load_queries();
      ahead.lines(lines);
      weigh(own, logits(turn), weights(turn));
      last = own, last_weights = weights(turn), ++turn;
    }
    sums_done = 0;
    for (int step = 0; step < kSteps; ++step) multiply_values(step);
    t.has_sums = true;
  }

  // The next sixteen rows that see some of the span. Sums of those before them that see none are cleared, if need be.
  Rows16 rows_from(int row) const {
    for (; row < t.rows; row += kRowsTogether) {
      const int count = t.rows - row < kRowsTogether ? t.rows - row : kRowsTogether;
      const int64_t here = block.count - from < kSpan ? block.count - from : int64_t{kSpan};
      const Seen seen = t.seen(t.bounds[row / kRowsTogether], begin + from, int(here));
      if (seen.slots > 0) return {row, count, seen};
      if (!t.has_sums) t.clear_sums(row, kRowsTogether);
    }
    return {};
  }

  void find_keys() {
    const PageShape& p = t.a.shape;
    const bool native = Math::native(p), in_place = p.k_dim % (2 * kTileWords) == 0 && (!native || p.page_size % kLanes == 0);
    key_words = !in_place ? t.k_words : native ? p.k.bytes / 4 : block.wide_k_row / 2;
    for (int64_t i = 0; i < padded(block.count); ++i) {
      if (i % kLanes == 0) keys[i / kLanes] = in_place ? slots.k[i] : (const char*)(block.keys + i * t.k_words);
      if (in_place) continue;
      float* const to = block.keys + i * t.k_words;
      memset(to, 0, sizeof(float) * t.k_words);
      if (i < block.count) memcpy(to, slots.k[i], 2 * p.k_dim);
    }
  }

  // [32 slots][column][16 pairs: slots w and w + 16], zeros behind the last slot.
  void turn_values() {
    alignas(64) uint16_t low[kLanes][2 * kLanes], high[kLanes][2 * kLanes];
    const char *low_rows[kLanes], *high_rows[kLanes];
    for (int w = 0; w < kLanes; ++w) low_rows[w] = (const char*)low[w], high_rows[w] = (const char*)high[w];
    float* to = block.values;
    for (int64_t slot = 0; slot < block.count; slot += 2 * kLanes, to += t.v_stride * kLanes)
      for (int64_t c = 0; c < t.a.v_dim; c += 2 * kLanes) {
        ahead.lines(kLanes / 2);
        const auto row = [&](int64_t at) {
          const __mmask32 there = t.a.v_dim - c >= 2 * kLanes ? ~0u : (1u << (t.a.v_dim - c)) - 1;
          return at < block.count ? _mm512_maskz_loadu_epi16(there, (const uint16_t*)slots.v[at] + c) : _mm512_setzero_si512();
        };
        for (int w = 0; w < kLanes; ++w) {
          const __m512i x = row(slot + w), y = row(slot + kLanes + w);
          _mm512_store_si512(low[w], _mm512_unpacklo_epi16(x, y)), _mm512_store_si512(high[w], _mm512_unpackhi_epi16(x, y));
        }
        __m512 columns[kLanes];
        const auto put = [&](const char* const* rows, int64_t first) {  // columns as unpacking leaves them: four of each eight
          transpose_words(rows, 0, columns);
          for (int64_t j = 0; j < kLanes; ++j)
            if (const int64_t column = first + j / 4 * 8 + j % 4; column < t.v_stride) store(to + column * kLanes, (Vec)columns[j]);
        };
        put(low_rows, c), put(high_rows, c + 4);
      }
  }

  // ---- products, a step at a time --------------------------------------------------------------------------------------

  bool few_words() const { return t.k_words <= 2 * kTileWords; }
  const float* queries() const { return t.turned + next.first * t.k_words; }

  void load_queries() const {
    if (next.first < 0 || !few_words()) return;
    load_tile<1>(queries(), kLanes);
    if (t.k_words > kTileWords) load_tile<2>(queries() + kTileWords * kLanes, kLanes);
  }

  void multiply_keys(int step) const {
    const int group = step / 2;
    if (group >= next.groups()) return;
    if (step % 2) return store_tile<0>(next_logits + group * (kLanes * kLanes), kLanes);
    const float* const k = (const float*)keys[from / kLanes + group];
    zero_tile<0>();
    if (few_words()) {
      load_tile<3>(k, key_words);
      add_pairs<0, 3, 1>();
      if (t.k_words == kTileWords) return;
      load_tile<3>(k + kTileWords, key_words);
      add_pairs<0, 3, 2>();
      return;
    }
    for (int64_t w = 0; w < t.k_words; w += kTileWords) {
      load_tile<3>(k + w, key_words);
      load_tile<1>(queries() + w * kLanes, kLanes);
      add_pairs<0, 3, 1>();
    }
  }

  void multiply_values(int step) {
    if (last.first < 0) return;
    const int pairs = last.pairs();
    if (pairs == kSpan / (2 * kLanes) && v_tiles * pairs == kSteps) return add_values(step / pairs, step % pairs, pairs);  // 64 columns
    for (const int due = v_tiles * pairs * (step + 1) / kSteps; sums_done < due; ++sums_done)
      add_values(sums_done / pairs, sums_done % pairs, pairs);
  }

  // Of sixteen columns and 32 slots.
  void add_values(int tile, int pair, int pairs) const {
    float* const sums = t.sums + last.first * t.v_stride + tile * (kLanes * kLanes);
    if (pair == 0) {
      if (t.has_sums) load_tile<4>(sums, kLanes);
      else zero_tile<4>();
    }
    load_tile<5>(block.values + ((from / (2 * kLanes) + pair) * t.v_stride + tile * kLanes) * kLanes, kLanes);
    load_tile<6>(last_weights + pair * (kLanes * kLanes), kLanes);
    add_pairs<4, 5, 6>();
    if (pair + 1 == pairs) store_tile<4>(sums, kLanes);
  }

  // Logits are looked at two steps after they are stored.
  void beside(int step) {
    multiply_keys(step), multiply_values(step);
    if (step % 2 && step > 1 && next.groups() >= step / 2) find_highs(next_logits + (step / 2 - 1) * kLanes * kLanes);
  }

  void find_highs(const float* logits) {
    Vec x = highs[0], y = highs[1];
#pragma GCC unroll 8
    for (int j = 0; j < kLanes; j += 2) x = maximum(load(logits + j * kLanes), x), y = maximum(load(logits + (j + 1) * kLanes), y);
    highs[0] = x, highs[1] = y;
  }

  // ---- weights ---------------------------------------------------------------------------------------------------------

  // Sixteen rows' logits become weights. Their maxima move first.
  void weigh(const Rows16& own, float* logits, float* weights) {
    const int lanes = own.groups() * kLanes;
    const bool plain = t.plain_unit > 0.0f, as_they_are = plain && own.seen.all && own.seen.slots % kLanes == 0;
    const float* const units = plain && block.k_units ? block.k_units + from : nullptr;
    const float unit = as_they_are ? t.plain_unit : prepare(own, logits, lanes, plain);
    if (as_they_are && !units) find_highs(logits + lanes * kLanes - kLanes * kLanes);  // of the last slots; the others' are known
    else find_all_highs(logits, lanes, units);
    const Vec top = rise(own, units ? maximum(highs[0], highs[1]) : maximum(highs[0], highs[1]) * unit);
    const float* const scales = block.v_scales ? block.v_scales + from : nullptr;
    highs[0] = highs[1] = splat(-kInf);
    if (!units && !scales && lanes == kSpan) weigh_all<true>(own, logits, weights, lanes, top, unit, units, scales);
    else weigh_all<false>(own, logits, weights, lanes, top, unit, units, scales);
  }

  void find_all_highs(const float* logits, int lanes, const float* units) {
    Vec high = splat(-kInf);
    for (int i = 0; i < lanes; ++i) {
      const Vec x = load(logits + i * kLanes);
      high = maximum(units ? x * splat(units[i]) : x, high);
    }
    highs[0] = highs[1] = high;
  }

  // As prepare_logits(): scaled, capped, masked. Gives what is left to be multiplied with.
  float prepare(const Rows16& own, float* logits, int lanes, bool plain) const {
    const AttentionArgs& a = t.a;
    alignas(64) float first[kLanes], last_seen[kLanes], self[kLanes], slope[kLanes];
    const int64_t here = block.count - from - 1;
    for (int r = 0; r < kLanes; ++r) {
      const Mask mask = r < own.count ? t.masks[own.first + r] : Mask{0, begin + block.count};
      const int64_t high = mask.last - begin - from;
      first[r] = float(mask.first - begin - from), last_seen[r] = float(high < here ? high : here), self[r] = float(high);
      slope[r] = r < own.count ? t.slopes[own.first + r] : 0.0f;
    }
    const bool linear = a.soft_cap == 0.0f && a.slopes == nullptr;
    const float factor = linear ? a.scale * kLog2E : a.scale;
    const Vec low = load(first), high = load(last_seen), at_self = load(self), slopes = load(slope);
    for (int i = 0; i < lanes; ++i) {
      const Vec slot = splat(float(i));
      Vec x = load(logits + i * kLanes);
      if (!plain) {
        x *= factor;
        if (block.k_scales) x *= splat(block.k_scales[from + i]);
        if (!linear) {
          if (a.soft_cap > 0.0f) x = a.soft_cap * tanh_of(x / a.soft_cap);
          x = (x + slopes * (slot - at_self)) * kLog2E;
        }
      }
      store(logits + i * kLanes, select((slot >= low) & (slot <= high), x, splat(-kInf)));
    }
    return plain ? t.plain_unit : 1.0f;
  }

  // The rows' maxima with logits up to `high`, which move older sums. 0 for rows that have seen none.
  Vec rise(const Rows16& own, Vec high) {
    float* const tops = t.tops + own.first;
    const Vec old = load(tops), top = raised<Math>(high, old);
    const __mmask16 rising = _mm512_cmp_ps_mask((__m512)top, (__m512)old, _CMP_GT_OQ);
    if (rising) {
      store(tops, top);
      const __mmask16 seen = rising & _mm512_cmp_ps_mask((__m512)old, (__m512)splat(-kInf), _CMP_NEQ_UQ);
      if (seen) shrink(own, (Vec)_mm512_mask_mov_ps((__m512)splat(1.0f), seen, (__m512)exp2_of(old - top)));
    }
    return select(top == splat(-kInf), Vec{}, top);
  }

  void shrink(const Rows16& own, Vec factor) {
    float *const totals = t.totals + own.first * kLanes, *const sums = t.sums + own.first * t.v_stride;
    for (int w = 0; w < kLanes; ++w) store(totals + w * kLanes, load(totals + w * kLanes) * factor);
    if (!t.has_sums) return;
    for (int64_t c = 0; c < t.v_stride; ++c) store(sums + c * kLanes, load(sums + c * kLanes) * factor);
  }

  template <bool kPlain>  // a whole span, and nothing but one unit to be multiplied with
  void weigh_all(const Rows16& own, const float* logits, float* weights, int lanes, Vec top, float one, const float* units,
                 const float* scales) {
    float* const totals = t.totals + own.first * kLanes;
    Vec sums[kLanes];
#pragma GCC unroll 16
    for (int w = 0; w < kLanes; ++w) sums[w] = load(totals + w * kLanes);
    int step = 0;
#pragma GCC unroll 2
    for (int slot = 0; slot < (kPlain ? kSpan : lanes); slot += 2 * kLanes) {
      const bool two = slot + kLanes < lanes;
#pragma GCC unroll 16
      for (int w = 0; w < kLanes; ++w) {
        if (w % (kLanes / kGroups) == 0) beside(step++);
        const auto weight = [&](int at) {
          const Vec unit = splat(!kPlain && units ? units[slot + at] : one);
          const Vec p = Math::weight(less(load(logits + (slot + at) * kLanes), unit, top));
          sums[w] += p;
          return !kPlain && scales ? p * splat(scales[slot + at]) : p;
        };
        const Vec p = weight(w), q = kPlain || two ? weight(w + kLanes) : Vec{};
        store(weights + (slot / 2 + w) * kLanes, Math::pair_of(p, q));
      }
    }
#pragma GCC unroll 16
    for (int w = 0; w < kLanes; ++w) store(totals + w * kLanes, sums[w]);
    for (; step < kSteps; ++step) beside(step);
  }
};

template <typename Math>
void attend_tiles(TileRows<Math>& t, Block<Math>& block, const Slots& slots, int64_t begin, Ahead& ahead) {
  ManyTiled<Math>{t, block, slots, begin, ahead}.run();
}

}  // namespace
}  // namespace pagoda

#endif
