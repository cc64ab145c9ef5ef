// Many rows against a block by AMX, sixteen rows at a time, with slots down and rows across, so that a register holds one slot of all sixteen:
//
//   logits [16 slots][16 rows]     = keys of 16 slots, where they lie [16][words]  x  queries, turned [words][16 rows]
//   sums   [16 columns][16 rows]  += values, turned [16][pairs of slots]           x  weights [pairs of slots][16 rows]
//
// Maxima, factors and denominators are registers then, no key is transposed, and weights become a tile's words where they are. An element's
// products are summed in the same order whichever factor is first: these are the bits of few rows (attention_tiled_few.hpp). While sixteen
// rows are weighed, the next ones' logits and the last ones' sums are multiplied (attention_tiled_steps.hpp), on into the next span.
//
// Sixty-four slots at a time: with 128 keys, values, logits and weights fill the first cache, and what passes through it (queries, sums) drives
// them out (16 rows and 128 slots, one core: 640 to 750 ns, 510 in two halves).
#pragma once

#include "attention_tiled_parts.hpp"
#include "attention_tiled_steps.hpp"

#if PAGODA_AMX

namespace pagoda {
namespace {

// Sixteen rows' share of a span.
struct Rows16 {
  int first = -1, count = 0;  // rows; first < 0: none
  int64_t from = 0;           // the span's first slot, in the block
  Seen seen = {0, false};
  float *logits = nullptr, *weights = nullptr;
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
  const PartEnd end;
  TileSteps steps{t.k_words, t.v_stride, {}, {}, {}};
  const char* keys[kBlock / kLanes];  // of sixteen slots each
  int64_t key_words = 0;              // from one slot's to the next
  int number = 0;                     // of the next rows
  int kept = 0;                       // rows whose sums are

  void run() {
    find_keys();
    turn_values();
    const PageShape& p = t.a.shape;  // of the next block's lines, what is due beside each sixteen rows
    const int turns = (t.rows + kRowsTogether - 1) / kRowsTogether * int((block.count + kSpan - 1) / kSpan);
    const int lines = int(kBlock * p.page_bytes / p.page_size / 64 / turns) + 1;
    Rows16 last, next = rows_from(0, 0);
    steps.start(logits_of(next), {});
    steps.all();
    while (next.first >= 0) {
      const Rows16 own = next;
      const Vec highs[2] = {steps.highs[0], steps.highs[1]};
      if (last.first == own.first) finish(last), last = {};  // its sums may move
      next = rows_from(own.first + kRowsTogether, own.from);
      steps.start(logits_of(next), sums_of(last));
      weigh(own, highs, lines);
      keep(last);
      last = own;
    }
    finish(last);
    t.has_sums = true;
    if (end != PartEnd::none) keep_up_to(t.rows);
  }

  // Sixteen rows from number `row` on that see some of the span, or the first of a later one. Sums of those before them that see none are
  // cleared, if need be.
  Rows16 rows_from(int row, int64_t from) {
    for (; from < block.count; from += kSpan, row = 0) {
      const int64_t here = block.count - from < kSpan ? block.count - from : int64_t{kSpan};
      for (; row < t.rows; row += kRowsTogether) {
        const Seen seen = t.seen(t.bounds[row / kRowsTogether], begin + from, int(here));
        if (seen.slots > 0) {
          const int odd = number++ & 1, count = t.rows - row < kRowsTogether ? t.rows - row : kRowsTogether;
          return {row, count, from, seen, t.scores + odd * (kSpan * kLanes + kLanes * kLanes * 2),
                  t.probs + odd * (kSpan / 2 * kLanes + kLanes * kLanes * 2)};
        }
        if (!t.has_sums && from == 0) t.clear_sums(row, kRowsTogether);
      }
    }
    return {};
  }

  NextLogits logits_of(const Rows16& rows) const {
    if (rows.first < 0) return {};
    return {keys + rows.from / kLanes, key_words, t.turned + rows.first * t.k_words, rows.logits, rows.groups()};
  }

  LastSums sums_of(const Rows16& rows) const {
    if (rows.first < 0) return {};
    return {rows.weights, block.values + rows.from / (2 * kLanes) * (t.v_stride * kLanes), t.sums + rows.first * t.v_stride, rows.pairs(),
            begun(rows)};
  }

  bool begun(const Rows16& rows) const { return t.has_sums || rows.from > 0; }  // else there are no sums yet

  void finish(const Rows16& last) {
    steps.start({}, sums_of(last));
    steps.all();
    keep(last);
  }

  // Rows whose sums are done, in the last span of a part that is kept. (Those between them see none of it.)
  void keep(const Rows16& done) {
    if (end != PartEnd::none && done.first >= 0 && done.from + kSpan >= block.count) keep_up_to(done.first + kRowsTogether);
  }
  void keep_up_to(int row) {
    for (; kept < row; kept += kRowsTogether) keep_part(t, kept, end == PartEnd::kept_first);
  }

  void find_keys() {
    const PageShape& p = t.a.shape;
    const bool native = Math::native(p), in_place = p.k_dim % (2 * kTileWords) == 0 && (!native || p.page_size % kLanes == 0);
    key_words = !in_place ? t.k_words : native ? p.k.bytes / 4 : block.wide_k_row / 2;
    for (int64_t i = 0; i < padded(block.count); i += kLanes)
      keys[i / kLanes] = !in_place ? (const char*)(block.keys + i * t.k_words) : slots.by_eights ? slots.k8.at[i / kEight] : slots.k[i];
    if (in_place) return;
    memset(block.keys, 0, sizeof(float) * t.k_words * padded(block.count));
    for (int64_t i = 0; i < block.count; ++i) memcpy(block.keys + i * t.k_words, slots.k[i], 2 * p.k_dim);
  }

  // [32 slots][column][16 pairs: slots w and w + 16], zeros behind the last slot.
  void turn_values() {
    float* to = block.values;
    if (slots.by_eights) return turn_sixteens(to);
    for (int64_t slot = 0; slot < block.count; slot += 2 * kLanes, to += t.v_stride * kLanes)
      for (int64_t c = 0; c < t.v_stride; c += kEight) {
        ahead.lines<kLanes / kEight>();
        if (slot + 2 * kLanes <= block.count && c + kEight <= t.a.v_dim) turn_eight_columns(Listed{slots.v + slot}, c, to + c * kLanes);
        else turn_rest(Listed{slots.v + slot}, slot, c, to + c * kLanes);
      }
  }

  // The same where sixteen slots lie at one distance from one another: two addresses instead of 32.
  void turn_sixteens(float* to) {
    const Eights& at = slots.v8;
    for (int64_t eight = 0; eight < block.count / kEight; eight += 4, to += t.v_stride * kLanes)
      for (int64_t c = 0; c < t.v_stride; c += kEight) {
        ahead.lines<kLanes / kEight>();
        const Spaced rows{at.at[eight], at.at[eight + 2], at.stride};
        if (c + kEight <= t.a.v_dim) turn_eight_columns(rows, c, to + c * kLanes);
        else turn_rest(rows, eight * kEight, c, to + c * kLanes);
      }
  }

  // Where 32 slots' values are: each somewhere, or sixteen at one distance.
  struct Listed {
    const char* const* at;
    const char* operator()(int row) const { return at[row]; }
  };
  struct Spaced {
    const char *first, *second;
    int64_t stride;
    const char* operator()(int row) const { return (row < kLanes ? first : second) + row % kLanes * stride; }
  };

  // Quarters of rows are put together on their way from memory, which spares half of the shuffles: in register i four slots from number i on,
  // each four further than the one before.
  template <typename Values>
  static void turn_eight_columns(Values values, int64_t column, float* to) {
    __m512i low[4], high[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const auto quarters = [&](int first) __attribute__((always_inline)) {
        const auto of = [&](int row) { return _mm_loadu_si128((const __m128i*)((const uint16_t*)values(first + row) + column)); };
        __m512i x = _mm512_castsi128_si512(of(i));
        x = _mm512_mask_broadcast_i32x4(x, 0x00f0, of(i + 4));
        x = _mm512_mask_broadcast_i32x4(x, 0x0f00, of(i + 8));
        return _mm512_mask_broadcast_i32x4(x, 0xf000, of(i + 12));
      };
      const __m512i x = quarters(0), y = quarters(kLanes);
      low[i] = _mm512_unpacklo_epi16(x, y), high[i] = _mm512_unpackhi_epi16(x, y);
    }
    turn_quarters(low, to), turn_quarters(high, to + 4 * kLanes);
  }

  static void turn_quarters(const __m512i (&rows)[4], float* to) {
    const __m512i a = _mm512_unpacklo_epi32(rows[0], rows[1]), b = _mm512_unpacklo_epi32(rows[2], rows[3]);
    const __m512i c = _mm512_unpackhi_epi32(rows[0], rows[1]), d = _mm512_unpackhi_epi32(rows[2], rows[3]);
    _mm512_store_si512(to, _mm512_unpacklo_epi64(a, b)), _mm512_store_si512(to + kLanes, _mm512_unpackhi_epi64(a, b));
    _mm512_store_si512(to + 2 * kLanes, _mm512_unpacklo_epi64(c, d)), _mm512_store_si512(to + 3 * kLanes, _mm512_unpackhi_epi64(c, d));
  }

  // The same of fewer slots or columns.
  template <typename Values>
  void turn_rest(Values values, int64_t slot, int64_t column, float* to) const {
    alignas(64) uint16_t there[2 * kLanes][kEight] = {};
    const char* rows[2 * kLanes];
    const int64_t columns = t.a.v_dim - column < kEight ? t.a.v_dim - column : kEight;
    for (int64_t i = 0; i < 2 * kLanes; ++i) {
      rows[i] = (const char*)there[i];
      if (slot + i < block.count && columns > 0) memcpy(there[i], (const uint16_t*)values(int(i)) + column, 2 * columns);
    }
    turn_eight_columns(Listed{rows}, 0, to);
  }

  // ---- weights ---------------------------------------------------------------------------------------------------------

  // Sixteen rows' logits become weights. Their maxima move first: those of logits as they are have been found.
  void weigh(const Rows16& own, const Vec (&found)[2], int lines) {
    const int lanes = own.groups() * kLanes;
    const float* const logs = t.weights.of(begin + own.from, lanes);
    const bool plain = t.plain_unit > 0.0f && !logs, as_they_are = plain && own.seen.all && own.seen.slots % kLanes == 0;
    const float* const units = plain && block.k_units ? block.k_units + own.from : nullptr;
    const float* const scales = block.v_scales ? block.v_scales + own.from : nullptr;
    const float unit = as_they_are ? t.plain_unit : prepare(own, lanes, plain, logs);
    const Vec high = as_they_are && !units ? maximum(found[0], found[1]) : find_all_highs(own.logits, lanes, units);
    const Vec top = rise(own, units ? high : high * unit);
    if (!units && !scales && lanes == kSpan && steps.even()) return weigh_span(own, top, unit, lines);
    ahead.lines(lines);
    weigh_all(own, lanes, top, unit, units, scales);
  }

  static Vec find_all_highs(const float* logits, int lanes, const float* units) {
    Vec high = splat(-kInf);
    for (int i = 0; i < lanes; ++i) {
      const Vec x = load(logits + i * kLanes);
      high = maximum(units ? x * splat(units[i]) : x, high);
    }
    return high;
  }

  // As prepare_logits(): scaled, capped, weighted, masked. Gives what is left to be multiplied with.
  float prepare(const Rows16& own, int lanes, bool plain, const float* logs) const {
    const AttentionArgs& a = t.a;
    alignas(64) float first[kLanes], last_seen[kLanes], self[kLanes], slope[kLanes];
    const int64_t from = own.from, here = block.count - from - 1;
    for (int r = 0; r < kLanes; ++r) {
      const Mask mask = r < own.count ? t.masks[own.first + r] : Mask{0, begin + block.count};
      const int64_t high = mask.last - begin - from;
      first[r] = float(mask.first - begin - from), last_seen[r] = float(high < here ? high : here), self[r] = float(high);
      slope[r] = r < own.count ? t.slopes[own.first + r] : 0.0f;
    }
    const bool linear = a.soft_cap == 0.0f && a.slopes == nullptr && logs == nullptr;
    const float factor = linear ? a.scale * kLog2E : a.scale;
    const Vec low = load(first), high = load(last_seen), at_self = load(self), slopes = load(slope);
    for (int i = 0; i < lanes; ++i) {
      const Vec slot = splat(float(i));
      Vec x = load(own.logits + i * kLanes);
      if (!plain) {
        x *= factor;
        if (block.k_scales) x *= splat(block.k_scales[from + i]);
        if (!linear) {
          if (a.soft_cap > 0.0f) x = a.soft_cap * tanh_of(x / a.soft_cap);
          x = fused(slopes, slot - at_self, x);
          if (logs) x += splat(logs[i]);
          x *= kLog2E;
        }
      }
      store(own.logits + i * kLanes, select((slot >= low) & (slot <= high), x, splat(-kInf)));
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
    if (!begun(own)) return;
    for (int64_t c = 0; c < t.v_stride; ++c) store(sums + c * kLanes, load(sums + c * kLanes) * factor);
  }

  // A whole span, and nothing but one unit to be multiplied with.
  void weigh_span(const Rows16& own, Vec top, float one, int lines) {
    if (lines > kTurns) ahead.lines(lines - kTurns);
    float* const totals = t.totals + own.first * kLanes;
    const float* const logits = own.logits;
    const Vec unit = splat(one);
    Vec sums[kLanes];
#pragma GCC unroll 16
    for (int w = 0; w < kLanes; ++w) sums[w] = load(totals + w * kLanes);
#pragma GCC unroll 32
    for (int turn = 0; turn < kTurns; ++turn) {
      const int w = turn % kLanes, slot = turn / kLanes * 2 * kLanes + w;
      steps.turn(turn);
      ahead.lines<1>();
      const Vec p = Math::weight(fused_less(load(logits + slot * kLanes), unit, top));
      const Vec q = Math::weight(fused_less(load(logits + (slot + kLanes) * kLanes), unit, top));
      sums[w] += p;
      sums[w] += q;
      store(own.weights + turn * kLanes, Math::pair_of(p, q));
    }
#pragma GCC unroll 16
    for (int w = 0; w < kLanes; ++w) store(totals + w * kLanes, sums[w]);
  }

  void weigh_all(const Rows16& own, int lanes, Vec top, float one, const float* units, const float* scales) {
    float* const totals = t.totals + own.first * kLanes;
    Vec sums[kLanes];
#pragma GCC unroll 16
    for (int w = 0; w < kLanes; ++w) sums[w] = load(totals + w * kLanes);
    int step = 0;
    for (int slot = 0; slot < lanes; slot += 2 * kLanes) {
      const bool two = slot + kLanes < lanes;
#pragma GCC unroll 16
      for (int w = 0; w < kLanes; ++w) {
        if (w % (kLanes / kGroups) == 0) steps.step(step++);
        const auto weight = [&](int at) {
          const Vec unit = splat(units ? units[slot + at] : one);
          const Vec p = Math::weight(fused_less(load(own.logits + (slot + at) * kLanes), unit, top));
          sums[w] += p;
          return scales ? p * splat(scales[slot + at]) : p;
        };
        const Vec p = weight(w), q = two ? weight(w + kLanes) : Vec{};
        store(own.weights + (slot / 2 + w) * kLanes, Math::pair_of(p, q));
      }
    }
#pragma GCC unroll 16
    for (int w = 0; w < kLanes; ++w) store(totals + w * kLanes, sums[w]);
    for (; step < kSteps; ++step) steps.step(step);
  }
};

template <typename Math>
void attend_tiles(TileRows<Math>& t, Block<Math>& block, const Slots& slots, int64_t begin, Ahead& ahead, PartEnd end) {
  ManyTiled<Math>{t, block, slots, begin, ahead, end}.run();
}

}  // namespace
}  // namespace pagoda

#endif
