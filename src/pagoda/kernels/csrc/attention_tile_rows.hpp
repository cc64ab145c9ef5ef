// The rows of a tile: queries x query heads of a group, of one sequence or of several that begin with the same pages. Their queries
// as words or bytes, and what they have summed so far, with a running maximum (online softmax, arXiv:1805.02867).
#pragma once

#include "attention_block.hpp"
#include "attention_nibbles.hpp"
#include "attention_logits.hpp"

namespace pagoda {
namespace {

constexpr int kRowsTogether = PAGODA_AMX ? 16 : 1;
constexpr int64_t kMostAcross = 1024;  // columns of V of rows of bytes that are multiplied sixteen at a time

// What a compiler sees as true or false.
struct Yes {
  constexpr operator bool() const { return true; }
};
struct No {
  constexpr operator bool() const { return false; }
};

// A row's maximum, once `high` has been seen. Where weights become bfloat16 it is a whole number, so that moving it multiplies weights, sums and
// denominators by a power of two, which rounds nothing: parts may be added up where they are made or merged later. And it leaves room for what
// is a little higher: few rows move theirs a second time. (A weight's exponent is rounded beside the maximum of its time, so all ways of
// computing a row have to move it at the same slots: kSpan.)
template <typename Math>
Vec raised(Vec high, Vec old) {
#if PAGODA_DPBF16
  if (Math::kPerWord == 2) return select(high > old, (Vec)_mm512_ceil_ps((__m512)high) + splat(4.0f), old);
#endif
  return maximum(high, old);
}

// Slots that some of several rows see, and those that each of them does.
struct Bounds {
  Mask any, every;
};

// Whether a part ends with a block whose sums are kept with those of the parts before it, if any (TileRows::keep, attention_tiled_parts.hpp).
enum class PartEnd { none, kept_first, kept };

inline void store_first(float* to, Vec x, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, __mmask16((1u << count) - 1), (__m512)x);
#else
  memcpy(to, &x, sizeof(float) * count);
#endif
}

struct InPlace {
  void bring() const {}
  void fetch() const {}
};

template <typename Math>
struct TileRows {
  const AttentionArgs& a;
  const Span* spans;
  const AttentionItem& item;
  int64_t group, k_words, v_stride;
  int rows = 0;
  float *queries, *sums, *tops, *totals, *slopes, *scores, *probs;  // totals: [rows][kLanes], added up at the end
  Mask* masks;
#if PAGODA_AMX
  float *turned;               // queries, [words][16 rows] for each sixteen
  Bounds* bounds;              // of each sixteen
  float *corners, *last_keys;  // attention_tiled_few.hpp
  float *turning;              // attention_tiled_parts.hpp
#endif
  struct { float *sums, *tops, *totals; } before;  // of the parts that are added up here; as `sums`, and a number a row
  float* block_space;
  bool across = false;    // sums are [column][16 rows] and denominators [16][16 rows]
  bool has_sums = false;  // else what lies in `sums` means nothing yet
  static constexpr bool kKeeps = Math::kPerWord == 2;  // maxima are whole numbers (raised)
  const float plain_unit;  // what logits are multiplied with where that is all, and slots count once; else 0
  BlockWeights weights;    // of the sequence, which is the only one of its items if it has some
  const bool bytes;  // products of bytes: attention_bytes.hpp
#if PAGODA_DPBF16
  ByteRows byte_rows;
#endif

  TileRows(const AttentionArgs& args, const Span* all, const AttentionItem& it)
      : a(args), spans(all), item(it), group(args.group()), k_words(Block<Math>::key_words(args)),
        v_stride(padded(args.v_dim)),
        plain_unit(a.soft_cap == 0.0f && a.slopes == nullptr && a.scale > 0.0f ? a.scale * kLog2E : 0.0f),
        weights(args, all[it.span_begin].seq, it.head), bytes(in_bytes(args, all[it.span_begin].seq)) {
    for (int s = item.span_begin; s < item.span_end; ++s) rows += int(group) * (spans[s].q_end - spans[s].q_begin);
    const int64_t room = (rows + kRowsTogether - 1) / kRowsTogether * kRowsTogether;  // with rows that are none
    const int64_t chunk = (kRowsTogether > 8 ? kRowsTogether : 8) * kBlock + (PAGODA_AMX ? 2 * kLanes * kLanes : 0);
    const int64_t k_groups = byte_groups(a.shape.k_dim), v_groups = byte_groups(a.v_dim);
    const int64_t for_bytes = bytes ? rows * (a.shape.k_dim / 4 + 1 + k_groups) + v_groups * (PAGODA_AMX ? 2 : 1) * kFewRows * (kBlock / 4 + kLanes) + for_turned() + 6 * 16 : 0;
    const int64_t for_tiles = PAGODA_AMX ? room * (k_words + kLanes + 2) + kRowsTogether * (k_words + v_stride + 2 * kLanes) + 8 * 16 : 0;
    float* at = scratch.need(room * (k_words + v_stride + 2 + kLanes + 4) + (kKeeps ? room * (v_stride + 2) + 2 * kLanes : 0) + 2 * chunk + for_bytes + for_tiles +
                             Block<Math>::floats(a) + 14 * 16);
    const auto take = [&](int64_t floats) { float* p = at; at += (floats + 15) / 16 * 16; return p; };
    queries = take(room * k_words), sums = take(room * v_stride);
    tops = take(room + kLanes), totals = take(room * kLanes), slopes = take(rows);
    masks = reinterpret_cast<Mask*>(take(rows * 4));
    scores = take(chunk), probs = take(chunk);
    if (kKeeps) before.sums = take(room * v_stride), before.tops = take(room + kLanes), before.totals = take(room + kLanes);
#if PAGODA_AMX
    turned = take(room * k_words), corners = take(2 * kRowsTogether * kLanes), last_keys = take(kRowsTogether * k_words);
    turning = take(kRowsTogether * v_stride);
    bounds = reinterpret_cast<Bounds*>(take(room / kRowsTogether * int64_t{sizeof(Bounds) / 4}));
#endif
#if PAGODA_DPBF16
    if (bytes) {
      byte_rows.queries = (int8_t*)take(rows * a.shape.k_dim / 4), byte_rows.scales = take(rows);
      byte_rows.sums = (int32_t*)take(rows * k_groups), byte_rows.weights = (uint8_t*)take(v_groups * (PAGODA_AMX ? 2 : 1) * kFewRows * kBlock / 4);
      byte_rows.middles = take(v_groups * kFewRows * kLanes), byte_rows.turned = take(for_turned());
    }
#endif
    block_space = at;
  }

  // Floats of queries as tiles, two for each sixteen rows and 64 columns; scales and sums of sixteen rows.
  int64_t for_turned() const {
    return PAGODA_AMX ? (rows + 15) / 16 * ((a.shape.k_dim / 64) * (2 * kLanes * kLanes) + (1 + byte_groups(a.shape.k_dim)) * kLanes) : 0;
  }

  // Weights of a row that a slot has, and sums of a query.
  int64_t byte_groups(int64_t dim) const { return a.shape.store == Store::int4 ? GroupScales::count_of(dim) : 1; }

  // Of a decode step or a short chunk over int8 or int4 pages. Its sequence alone decides, never the other rows of the item: what a row
  // yields must not depend on its batch mates. One whose attention is summed is not: its sums are of the numbers.
  static bool in_bytes(const AttentionArgs& a, int64_t seq) {
    const auto whole = [](int64_t dim) { return dim > 0 && dim % kBytesAtOnce == 0; };
    return a.byte_products && PAGODA_DPBF16 && Math::kPerWord == 2 && (a.shape.store == Store::int8 || a.shape.store == Store::int4) && !a.summed(seq) &&
           whole(a.shape.k_dim) && whole(a.shape.v_dim) && a.shape.page_size % kEight == 0 &&
           !a.wide(seq);
  }

  template <typename Act>
  void each_row(Act act) const {  // act(row, span, query of the chunk, query head)
    int row = 0;
    for (int s = item.span_begin; s < item.span_end; ++s)
      for (int q = spans[s].q_begin; q < spans[s].q_end; ++q)
        for (int64_t g = 0; g < group; ++g) act(row++, spans[s], q, item.head * group + g);
  }

  void prepare() {
    each_row([&](int row, const Span& span, int query, int64_t q_head) {
      const int64_t token = a.q_starts[span.seq] + query;
#if PAGODA_DPBF16
      if (bytes) {
        const uint16_t* q = (const uint16_t*)a.q + token * a.q_token_stride + q_head * a.q_head_stride;
        int8_t* const codes = byte_rows.queries + row * a.shape.k_dim;
        int32_t sum;
        round_query(q, a.shape.k_dim, codes, byte_rows.scales + row, &sum);
        if (a.shape.store == Store::int8) byte_rows.sums[row] = sum;
        else sum_groups(codes, a.shape.k_dim, (float*)byte_rows.sums + row * byte_groups(a.shape.k_dim));
      } else
#endif
        pack_query<Math>(a, token, q_head, k_words, queries + row * k_words);
      const int64_t own = a.kv_lens[a.pair(span.seq, item.head)] - a.num_queries(span.seq) + query;
      masks[row] = {a.window ? own - a.window + 1 : 0, own};
      slopes[row] = a.slopes ? a.slopes[q_head] : 0.0f;
    });
  }

  // No slot has been seen. Sums become zeros, or are left to attend_many(), which need not read them then.
  void restart(bool zeros) {
    const int filled = (rows + kRowsTogether - 1) / kRowsTogether * kRowsTogether;
    for (int row = 0; row < filled; ++row) tops[row] = -kInf;
    memset(totals, 0, sizeof(float) * filled * kLanes);
    has_sums = zeros;
    if (zeros) clear_sums(0, rows);
  }

  void clear_sums(int row, int count) { memset(sums + row * v_stride, 0, sizeof(float) * count * v_stride); }

#if PAGODA_AMX
  // Of few rows by tiles: whether the sums' columns lie as unpacking leaves them (attention_tiled_few.hpp), until they are put in order.
  bool unpacked() const { return a.v_dim % (2 * kLanes) == 0; }

  void order_columns() {
    if (!unpacked()) return;
    for (float* at = sums; at < sums + rows * v_stride; at += 2 * kLanes) {
      const __m512 low = _mm512_loadu_ps(at), high = _mm512_loadu_ps(at + kLanes);
      const __m512 x = _mm512_shuffle_f32x4(low, high, 0x44), y = _mm512_shuffle_f32x4(low, high, 0xee);
      _mm512_storeu_ps(at, _mm512_shuffle_f32x4(x, x, 0xd8)), _mm512_storeu_ps(at + kLanes, _mm512_shuffle_f32x4(y, y, 0xd8));
    }
  }
#endif

#if PAGODA_AMX
  // Whether rows of bytes are multiplied sixteen at a time (attention_byte_many.hpp): more than eight, which see all of whole blocks.
  bool find_across() {
    across = bytes && rows > kFewRows && plain_unit > 0.0f && !weights.any() && a.v_dim <= kMostAcross && item.slot_begin < item.slot_end &&
             item.slot_begin % kBlock == 0 && item.slot_end % kBlock == 0;
    for (int row = 0; across && row < rows; ++row) across = masks[row].first <= item.slot_begin && masks[row].last >= item.slot_end - 1;
    return across;
  }
#endif

  float total(int64_t row) const { return total_of(load(totals + row * kLanes)); }

  // Adds this part of `count` rows from `row` on to those before it: each sum rounds but once, as where parts are merged (merge_parts).
  void keep(int row, int count, bool first) {
    for (int from = row; from < row + count; from += kLanes) {
      const int here = row + count - from < kLanes ? row + count - from : kLanes;
      alignas(64) float own[kLanes] = {}, f[kLanes], g[kLanes];
      for (int r = 0; r < here; ++r) own[r] = total(from + r);
      const Vec top = load(tops + from), old = first ? splat(-kInf) : load(before.tops + from), high = maximum(top, old);
      const auto factor = [&](Vec of) { return select(of == splat(-kInf), Vec{}, exp2_of(of - high)); };
      store(f, factor(old)), store(g, factor(top)), store_first(before.tops + from, high, here);
      store_first(before.totals + from, first ? load(own) : fused(load(before.totals + from), load(f), load(own) * load(g)), here);
      for (int r = 0; r < here; ++r) {
        float *const to = before.sums + (from + r) * v_stride, *const part = sums + (from + r) * v_stride;
        for (int64_t c = 0; c < v_stride; c += kLanes)
          store(to + c, first ? load(part + c) : fused(load(to + c), splat(f[r]), load(part + c) * g[r]));
      }
    }
  }

  // What `count` rows from `row` on see of a block of `slots` slots.
  Seen seen(int row, int count, int64_t begin, int slots) const {
    return seen(bounds_of(row, count), begin, slots);
  }

  // For `count` rows from `row` on.
  Bounds bounds_of(int row, int count) const {
    Mask any = masks[row], every = any;
    const bool one = item.span_end - item.span_begin == 1;  // rows of one chunk see ever more: the first and the last say all
    for (const Mask* m = masks + row + (one ? count - 1 : 1); m < masks + row + count; ++m) {
      any.first = m->first < any.first ? m->first : any.first, any.last = m->last > any.last ? m->last : any.last;
      every.first = m->first > every.first ? m->first : every.first, every.last = m->last < every.last ? m->last : every.last;
    }
    return {any, every};
  }

  static Seen seen(const Bounds& bounds, int64_t begin, int slots) {
    const Mask &any = bounds.any, &every = bounds.every;
    const int64_t here = any.last - begin + 1 < slots ? any.last - begin + 1 : slots;
    if (here <= 0 || any.first - begin >= here) return {0, false};
    return {int(here), every.first <= begin && every.last >= begin + here - 1};
  }

  // Logits in place of products for `count` rows from `row` on; their running maxima move, and older sums with them. All rise before
  // one is weighed: no row waits for its own maximum. The products of `here.slots` slots from number `from` of the block on, which is
  // `begin` of its row, are there, [count][kBlock]. Where sums lie elsewhere, `held` brings and fetches them.
  template <typename Held = InPlace>
  PAGODA_OWN_REGISTERS void rise(int row, int count, Seen here, int64_t begin, const Block<Math>& block, int from, float* products,
                                 Logits* found, Held held = {}) {
    const float* const logs = weights.of(begin, here.slots);
    const bool plain = plain_unit > 0.0f && !logs, as_they_are = plain && here.all && here.slots % kLanes == 0;
    const float* const units = plain && block.k_units ? block.k_units + from : nullptr;
    const float* const k_scales = !plain && block.k_scales ? block.k_scales + from : nullptr;
    Vec highs[kRowsAtOnce > kFewRows ? kRowsAtOnce : kFewRows] = {};
    for (int r = 0; r < count; ++r) {
      float* const s = products + r * kBlock;
      if (as_they_are) found[r].unit = plain_unit, found[r].masked = false;
      else prepare_logits(a, s, here.slots, begin, masks[row + r], slopes[row + r], logs, k_scales, found + r);
      found[r].units = units;
      highs[r] = units ? highs_of(s, int(padded(here.slots)), units) : highs_of(s, int(padded(here.slots))) * found[r].unit;
    }
#if PAGODA_DPBF16
    const __mmask16 there = __mmask16((1u << count) - 1);
    const Vec old = load(tops + row);
    unsigned higher = 0;
    for (int r = 0; r < count; ++r) higher |= _mm512_cmp_ps_mask((__m512)highs[r], (__m512)splat(tops[row + r]), _CMP_GT_OQ);
    if (!higher) {  // nearly always
      const __mmask16 seen = _mm512_cmp_ps_mask((__m512)old, (__m512)splat(-kInf), _CMP_NEQ_UQ);
      for (int r = 0; r < count; ++r) found[r].alive = seen >> r & 1;
      return;
    }
    const Vec top = (Vec)_mm512_mask_mov_ps((__m512)old, there, (__m512)raised<Math>(largest_of_each(highs), old));
    const __mmask16 alive = _mm512_mask_cmp_ps_mask(there, (__m512)top, (__m512)splat(-kInf), _CMP_NEQ_UQ);
    unsigned rising = _mm512_mask_cmp_ps_mask(there, (__m512)top, (__m512)old, _CMP_GT_OQ);
    for (int r = 0; r < count; ++r) found[r].alive = alive >> r & 1;
    if (rising == 0) return;
    store(tops + row, top);  // whole, so that reading one of them need not wait for the memory
    alignas(64) float factors[kLanes];
    store(factors, exp2_of(old - top));
    rising &= _mm512_cmp_ps_mask((__m512)old, (__m512)splat(-kInf), _CMP_NEQ_UQ);
    if (rising == 0) return;
    held.bring();
    for (; rising; rising &= rising - 1) shrink(row + __builtin_ctz(rising), factors[__builtin_ctz(rising)]);
    held.fetch();
#else
    for (int r = 0; r < count; ++r) {
      const float old = tops[row + r];
      found[r].alive = old != -kInf;
      if (!any(highs[r] > splat(old))) continue;
      tops[row + r] = largest(highs[r]), found[r].alive = true;
      if (old > -kInf) shrink(row + r, exp2_of(old - tops[row + r]));
    }
#endif
  }

  void shrink(int row, float factor) {
    store(totals + row * kLanes, load(totals + row * kLanes) * factor);
    for (int64_t c = 0; c < v_stride; c += kLanes) store(sums + row * v_stride + c, load(sums + row * v_stride + c) * factor);
  }

  // Logits of a row over `slots` slots from number `from` of the block on become weights.
  PAGODA_OWN_REGISTERS void weigh(int row, int slots, const float* logits, const Logits& found, float* weights, const Block<Math>& block,
                                  int from = 0) {
    const int lanes = int(padded(slots));
    if (!found.alive) {
      memset(weights, 0, sizeof(float) * weight_words(lanes));
      return;
    }
    const Vec top = splat(tops[row]), unit = splat(found.unit);
    const float *const units = found.units, *const v_scales = block.v_scales ? block.v_scales + from : nullptr;
    Vec sum = load(totals + row * kLanes);
    int i = 0;
    if (Math::kExactZero || !found.masked) {  // nearly always
      const auto two = [&](auto own_units, auto scaled) {
        const auto of = [&](int at) { return own_units ? load(units + at) : unit; };
        Vec p = Math::weight(fused_less(load(logits + i), of(i), top)), q = Math::weight(fused_less(load(logits + i + kLanes), of(i + kLanes), top));
        sum += p;
        sum += q;
        if (scaled) p *= load(v_scales + i), q *= load(v_scales + i + kLanes);
        Math::store_two(p, q, weights, i);
      };
      if (lanes == kSpan && !v_scales) {
#pragma GCC unroll 32
        for (; i < kSpan; i += 2 * kLanes) two(No{}, No{});
      } else if (lanes == kSpan && units) {
#pragma GCC unroll 32
        for (; i < kSpan; i += 2 * kLanes) two(Yes{}, Yes{});
      } else {
        for (; i + 2 * kLanes <= lanes; i += 2 * kLanes) two(units != nullptr, v_scales != nullptr);
      }
    }
    for (; i < lanes; i += kLanes) {
      const Vec x = load(logits + i);
      Vec p = Math::weight(fused_less(x, units ? load(units + i) : unit, top));
      if (found.masked) p = select(x == splat(-kInf), Vec{}, p);
      sum += p;
      if (v_scales) p *= load(v_scales + i);
      store_weights(p, weights, i);
    }
    store(totals + row * kLanes, sum);
  }

  static int64_t weight_words(int64_t lanes) {
    return PAGODA_AMX ? (lanes + 2 * kLanes - 1) / (2 * kLanes) * kLanes : Block<Math>::words_of(lanes);
  }

  static void store_weights(Vec p, float* weights, int at) {
#if PAGODA_AMX
    Math::store_two(p, Vec{}, weights, at);
    return;
#elif PAGODA_DPBF16
    if (Math::kPerWord == 2) {
      _mm256_storeu_si256((__m256i*)(weights + at / 2), (__m256i)_mm512_cvtneps_pbh(p));
      return;
    }
#endif
    store(weights + at, p);
  }
};

#if PAGODA_DPBF16

// act(row, rows) for up to kFewRows rows at a time, as many each time.
template <typename Act>
void each_few_rows(int rows, Act act) {
  for (int blocks = (rows + kFewRows - 1) / kFewRows, row = 0; blocks > 0; --blocks) {
    const int here = (rows - row + blocks - 1) / blocks;
    act(row, here);
    row += here;
  }
}

// What becomes of `kRows` rows from `row` on of bytes, whose products with a block's keys are t.scores.
template <int kRows, typename Math>
void find_steps(TileRows<Math>& t, int count, int64_t begin, int row, const ByteScales& scales, Logits* found,
                Vec (&highs)[kFewRows], ByteSteps& steps) {
  const int lanes = int(padded(count));
  const float* const logs = t.weights.of(begin, count);
  bool alike = true;
  for (int r = 0; r < kRows; ++r) {
    prepare_logits(t.a, t.scores + r * kBlock, count, begin, t.masks[row + r], t.slopes[row + r], logs, nullptr, found + r);
    alike = alike && found[r].unit == found[0].unit;
  }
  if (alike) find_highs<kRows>(t.scores, kBlock, lanes, found[0].unit, scales.logs, highs);
  else
    for (int r = 0; r < kRows; ++r) find_highs<1>(t.scores + r * kBlock, kBlock, lanes, found[r].unit, scales.logs, highs + r);
  steps.rise(highs, kRows, t.tops + row);
}

#endif

}  // namespace
}  // namespace pagoda
