// Items of attention work, for one instruction set. Compiled once per instruction set (CMakeLists.txt); everything but the
// entries lives in an unnamed namespace and uses nothing of the standard library that could be shared between objects compiled
// for different machines.
//
// A tile holds R rows = queries x query heads of the group (of one sequence, or of several that begin with the same pages),
// which read the same K and V. Slots are taken kBlock at a time, with a running maximum (online softmax, arXiv:1805.02867):
//
//   slots in pages ──pack──►  keys   [words of k_dim][kBlock]        once a block, for all rows
//                             values [words of kBlock][v_dim]
//   for six rows at a time:   scores = queries x keys,  probabilities = 2^(scores - maximum),  sums += probabilities x values
//
// Scores are in units of log2, so that e^x is 2^x. Logits, sums and denominators are float32; the products are those of Math:
// float32, or pairs of bfloat16 (then probabilities are rounded to bfloat16 before they meet V).

#include "attention.hpp"
#include "attention_bytes.hpp"
#include "attention_few.hpp"
#include "attention_math.hpp"
#include "attention_pack.hpp"
#include "attention_slots.hpp"

namespace pagoda {
namespace {

#if !PAGODA_DPBF16
constexpr int kFewRows = 0, kBytesAtOnce = 64;  // no products for few rows, nor of bytes
#endif
constexpr float kLog2E = 1.44269504f;

// ---- scratch: one buffer a thread, kept ------------------------------------------------------------------------------------

struct Scratch {
  float* data = nullptr;
  int64_t size = 0;
  ~Scratch() { __builtin_free(data); }
  float* need(int64_t floats) {
    if (floats > size) {
      __builtin_free(data);
      data = nullptr, size = 0;
      void* at = nullptr;
      if (posix_memalign(&at, 64, static_cast<size_t>(floats) * sizeof(float)) != 0) __builtin_trap();
      data = static_cast<float*>(at);
      size = floats;
    }
    return data;
  }
};

thread_local Scratch scratch;

// ---- one block of slots -----------------------------------------------------------------------------------------------------------

template <typename Math>
struct Block {
  using Number = typename Math::Number;  // float, or bfloat16 as uint16_t

  const AttentionArgs& a;
  int64_t k_words, v_stride;
  Number *wide_k, *wide_v;     // rows of this block as numbers, where pages hold something else
  int64_t wide_k_row, wide_v_row;
  float *keys, *values;        // see attention_pack.hpp
  float *k_scales, *v_scales;  // [kScales], or null where rows hold numbers
  char* tail;                  // of the last eight of slots
  int count = 0;
  static constexpr int kScales = kBlock + kLanes;  // a register beyond the last slot's may be written

  static int64_t words_of(int64_t columns) { return (columns + Math::kPerWord - 1) / Math::kPerWord; }
  static int64_t wide_row(int64_t dim) { return (dim + 63) / 64 * 64; }

  static int64_t floats(const AttentionArgs& a) {
    const int64_t wide = Math::native(a.shape) ? 0 : kBlock * (wide_row(a.shape.k_dim) + wide_row(a.v_dim));
    return words_of(a.shape.k_dim) * kBlock + words_of(kBlock) * padded(a.v_dim) + wide + 2 * kScales +
           Slots::tail_bytes(a.shape) / 4 + 4 * 16;
  }

  Block(const AttentionArgs& args, float* at) : a(args), k_words(words_of(args.shape.k_dim)), v_stride(padded(args.v_dim)) {
    wide_k_row = wide_row(a.shape.k_dim), wide_v_row = wide_row(a.v_dim);
    keys = at, at += k_words * kBlock;
    values = at, at += words_of(kBlock) * v_stride;
    const bool scaled = a.shape.store == Store::int8 || a.shape.store == Store::fp8;
    k_scales = scaled ? at : nullptr, v_scales = scaled ? at + kScales : nullptr;
    tail = (char*)(at + 2 * kScales);
    wide_k = (Number*)(tail + (Slots::tail_bytes(a.shape) + 63) / 64 * 64), wide_v = wide_k + kBlock * wide_k_row;
  }

  // Slots that products read where they lie.
  void open_eights(const PageRow& pages, Slots& slots) {
    count = slots.count;
    slots.pad_eights(a.shape, tail);
#if PAGODA_DPBF16
    if (!k_scales) return;
    const Plane &of_k = a.shape.k_scales, &of_v = a.shape.v.bytes ? a.shape.v_scales : a.shape.k_scales;
    const int64_t last = padded(count) - kLanes;  // of pages that begin within a register, the last may leave some of it
    store(k_scales + last, Vec{}), store(v_scales + last, Vec{});
    pages.each_page(slots, [&](const char* page, int64_t inside, int64_t at, int64_t here) {
      widen_scales((const uint16_t*)(page + of_k.at) + inside, here, k_scales + at);
      widen_scales((const uint16_t*)(page + of_v.at) + inside, here, v_scales + at);
    });
#else
    (void)pages;
#endif
  }

  // Rows of numbers for all slots, which `slots` then names one by one and by eights; scales of codes beside them.
  void widen(Slots& slots, bool with_values, Ahead& ahead) {
    count = slots.count;
    if (!Math::native(a.shape)) {
      const bool own_v = with_values && a.shape.v.bytes;
      const auto fetch = [&](int) { ahead.lines(1); };
      widen_rows(a.shape.store, slots.k, slots.k_scales, count, a.shape.k_dim, wide_k, wide_k_row, fetch);
      if (own_v) widen_rows(a.shape.store, slots.v, slots.v_scales, count, a.v_dim, wide_v, wide_v_row, fetch);
      if (Math::kPerWord == 2 && a.shape.k_dim % 2)
        for (int i = 0; i < count; ++i) wide_k[i * wide_k_row + a.shape.k_dim] = 0;
      name_wide(slots.k, slots.k8, wide_k, wide_k_row);
      if (own_v) name_wide(slots.v, slots.v8, wide_v, wide_v_row);
      else name_wide(slots.v, slots.v8, wide_k, wide_k_row);
    }
    if (k_scales)
      for (int i = 0; i < padded(count); ++i) {
        const int slot = i < count ? i : count - 1;
        k_scales[i] = pagoda::widen(*(const uint16_t*)slots.k_scales[slot]);
        v_scales[i] = pagoda::widen(*(const uint16_t*)slots.v_scales[slot]);
      }
    slots.pad();
  }

  // Rows behind the last slot's, up to a full register, become zeros.
  void name_wide(const char** each, Eights& eights, Number* rows, int64_t row) const {
    memset(rows + count * row, 0, (padded(count) - count) * row * sizeof(Number));
    for (int i = 0; i < count; ++i) each[i] = (const char*)(rows + i * row);
    for (int64_t i = 0; i < padded(count); i += kEight) eights.at[i / kEight] = (const char*)(rows + i * row);
    eights.stride = row * int64_t{sizeof(Number)};
  }

  void pack(const Slots& slots, bool with_values, Ahead& ahead) {
    for (int i = 0; i < count; i += kLanes) {
      ahead.lines(kLanes);
      pack_keys(slots.k + i, k_words, keys + i, kBlock);
    }
    if (!with_values) return;
    for (int i = 0; i < count; i += Math::kPerWord) {
      ahead.lines(Math::kPerWord / 2);
      Math::pack_values(slots.v + i, a.v_dim, v_stride, values + i / Math::kPerWord * v_stride);
    }
  }
};

// ---- queries -----------------------------------------------------------------------------------------------------------------------

inline float query_element(const AttentionArgs& a, int64_t at) {
  switch (a.dtype) {
    case Dtype::f32: return ((const float*)a.q)[at];
    case Dtype::bf16: return widen(((const uint16_t*)a.q)[at]);
    default: return half_to_float(((const uint16_t*)a.q)[at]);
  }
}

template <typename Math>
void pack_query(const AttentionArgs& a, int64_t token, int64_t q_head, float* out);

template <>
void pack_query<Floats>(const AttentionArgs& a, int64_t token, int64_t q_head, float* out) {
  const int64_t at = token * a.q_token_stride + q_head * a.q_head_stride;
  for (int64_t d = 0; d < a.shape.k_dim; ++d) out[d] = query_element(a, at + d);
}

#if PAGODA_DPBF16
template <>
void pack_query<Pairs>(const AttentionArgs& a, int64_t token, int64_t q_head, float* out) {
  const int64_t at = token * a.q_token_stride + q_head * a.q_head_stride, dim = a.shape.k_dim;
  if (dim % 2) out[dim / 2] = 0.0f;
  memcpy(out, (const uint16_t*)a.q + at, 2 * dim);
}
#endif

struct Mask {
  int64_t first, last;  // slots that the row sees
};

// What became of a row's products: its logits are the numbers there times `unit`, in units of log2.
struct Logits {
  float unit;
  bool masked;  // some are -inf
  bool alive;   // the row has seen a slot
};

// Logits of one row over a block, out of the products of query and keys: scaled, capped, masked (-inf). Where nothing but the scale
// is to be applied, numbers stay as they are.
inline void prepare_logits(const AttentionArgs& a, float* s, int count, int64_t begin, Mask mask, float slope, const float* k_scales,
                           Logits* found) {
  const int64_t low = mask.first - begin, high = mask.last - begin < count - 1 ? mask.last - begin : count - 1;
  const int lanes = int(padded(count));
  const bool masked = low > 0 || high < lanes - 1, plain = a.soft_cap == 0.0f && a.slopes == nullptr;
  const float factor = plain ? a.scale * kLog2E : a.scale;
  found->masked = masked, found->unit = 1.0f;
  if (plain && !masked && !k_scales && factor > 0.0f) {
    found->unit = factor;
    return;
  }
  Vec slot;
  for (int i = 0; i < kLanes; ++i) slot[i] = float(i);
  const Vec from = splat(float(low)), to = splat(float(high)), own = splat(float(mask.last - begin));
  for (int i = 0; i < lanes; i += kLanes, slot += splat(float(kLanes))) {
    Vec x = load(s + i) * factor;
    if (k_scales) x *= load(k_scales + i);
    if (!plain) {
      if (a.soft_cap > 0.0f) x = a.soft_cap * tanh_of(x / a.soft_cap);
      x = (x + slope * (slot - own)) * kLog2E;
    }
    if (masked) x = select((slot >= from) & (slot <= to), x, splat(-kInf));
    store(s + i, x);
  }
}

// The same; returns their maxima, lane by lane.
inline Vec logits_of(const AttentionArgs& a, float* s, int count, int64_t begin, Mask mask, float slope, const float* k_scales,
                     Logits* found) {
  prepare_logits(a, s, count, begin, mask, slope, k_scales, found);
  const int lanes = int(padded(count));
  Vec top = splat(-kInf);
  if (lanes == kBlock) {
#pragma GCC unroll 32
    for (int i = 0; i < kBlock; i += kLanes) top = maximum(load(s + i), top);
  } else {
    for (int i = 0; i < lanes; i += kLanes) top = maximum(load(s + i), top);
  }
  return top * found->unit;
}

// ---- a tile of rows over one range of slots ------------------------------------------------------------------------------------------

template <typename Math>
struct Tile {
  const AttentionArgs& a;
  const Span* spans;
  const AttentionItem& item;
  const AttentionScratch& out;
  int64_t group, k_words, v_stride;
  int rows = 0;
  float *queries, *sums, *tops, *totals, *slopes, *scores, *probs;  // totals: [rows][kLanes], added up at the end
  Mask* masks;
  float* block_space;
  const bool bytes;  // products of bytes: attention_bytes.hpp
#if PAGODA_DPBF16
  ByteRows byte_rows;
#endif

  Tile(const AttentionArgs& args, const Span* all, const AttentionItem& it, const AttentionScratch& where)
      : a(args), spans(all), item(it), out(where), group(args.group()), k_words(Block<Math>::words_of(args.shape.k_dim)),
        v_stride(padded(args.v_dim)), bytes(in_bytes(args, args.num_queries(all[it.span_begin].seq))) {
    for (int s = item.span_begin; s < item.span_end; ++s) rows += int(group) * (spans[s].q_end - spans[s].q_begin);
    const int64_t chunk = 8 * kBlock;
    const int64_t for_bytes = bytes ? rows * (a.shape.k_dim / 4 + 2) + kFewRows * kBlock / 4 + 4 * 16 : 0;
    float* at = scratch.need(rows * (k_words + v_stride + 2 + kLanes + 4) + 2 * chunk + for_bytes + Block<Math>::floats(a) + 10 * 16);
    const auto take = [&](int64_t floats) { float* p = at; at += (floats + 15) / 16 * 16; return p; };
    queries = take(rows * k_words), sums = take(rows * v_stride);
    tops = take(rows), totals = take(rows * kLanes), slopes = take(rows);
    masks = reinterpret_cast<Mask*>(take(rows * 4));
    scores = take(chunk), probs = take(chunk);
#if PAGODA_DPBF16
    if (bytes) {
      byte_rows.queries = (int8_t*)take(rows * a.shape.k_dim / 4), byte_rows.scales = take(rows);
      byte_rows.sums = (int32_t*)take(rows), byte_rows.weights = (uint8_t*)take(kFewRows * kBlock / 4);
    }
#endif
    block_space = at;
  }

  // Of a decode step or a short chunk over int8 pages. Its sequence alone decides, never the other rows of the item: what a row
  // yields must not depend on its batch mates.
  static bool in_bytes(const AttentionArgs& a, int64_t queries) {
    const auto whole = [](int64_t dim) { return dim > 0 && dim % kBytesAtOnce == 0; };
    return a.byte_products && PAGODA_DPBF16 && Math::kPerWord == 2 && a.shape.store == Store::int8 && a.prob_sums == nullptr &&
           whole(a.shape.k_dim) && whole(a.shape.v_dim) && a.shape.page_size % kEight == 0 && (queries == 1 || queries * a.group() <= kNarrowRows);
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
        round_query(q, a.shape.k_dim, byte_rows.queries + row * a.shape.k_dim, byte_rows.scales + row, byte_rows.sums + row);
      } else
#endif
        pack_query<Math>(a, token, q_head, queries + row * k_words);
      const int64_t own = a.kv_lens[a.pair(span.seq, item.head)] - a.num_queries(span.seq) + query;
      masks[row] = {a.window ? own - a.window + 1 : 0, own};
      slopes[row] = a.slopes ? a.slopes[q_head] : 0.0f;
    });
  }

  void restart() {
    for (int row = 0; row < rows; ++row) tops[row] = -kInf;
    memset(totals, 0, sizeof(float) * rows * kLanes);
    memset(sums, 0, sizeof(float) * rows * v_stride);
  }

  float total(int64_t row) const { return total_of(load(totals + row * kLanes)); }

  // Logits in place of products; the running maximum moves, and older sums with it.
  Logits rise(int row, float* products, int64_t begin, const Block<Math>& block) {
    Logits found;
    const Vec highs = logits_of(a, products, block.count, begin, masks[row], slopes[row], block.k_scales, &found);
    const float old = tops[row];
    found.alive = old != -kInf;
    if (!any(highs > splat(old))) return found;
    const float top = largest(highs), factor = exp2_of(old - top);  // 0 for the first slots that the row sees
    tops[row] = top, found.alive = true;
    if (old > -kInf) {
      store(totals + row * kLanes, load(totals + row * kLanes) * factor);
      for (int64_t c = 0; c < v_stride; c += kLanes)
        store(sums + row * v_stride + c, load(sums + row * v_stride + c) * factor);
    }
    return found;
  }

  // All of `count` rows rise before one is weighed: no row waits for its own maximum.
  void rise_all(int row, int count, int64_t begin, const Block<Math>& block, Logits* found) {
    for (int r = 0; r < count; ++r) found[r] = rise(row + r, scores + r * kBlock, begin, block);
  }

  // Logits of a row become weights.
  void weigh(int row, const float* logits, const Logits& found, float* weights, const Block<Math>& block) {
    const int lanes = int(padded(block.count));
    if (!found.alive) {
      memset(weights, 0, sizeof(float) * Block<Math>::words_of(lanes));
      return;
    }
    const Vec top = splat(tops[row]), unit = splat(found.unit);
    Vec sum = load(totals + row * kLanes);
    if (lanes == kBlock && !found.masked && !block.v_scales) {  // nearly always: unrolled
#pragma GCC unroll 32
      for (int i = 0; i < kBlock; i += kLanes) {
        const Vec p = exp2_of(load(logits + i) * unit - top);
        sum += p;
        store_weights(p, weights, i);
      }
      store(totals + row * kLanes, sum);
      return;
    }
    for (int i = 0; i < lanes; i += kLanes) {
      const Vec x = load(logits + i);
      Vec p = exp2_of(x * unit - top);
      if (found.masked) p = select(x == splat(-kInf), Vec{}, p);
      sum += p;
      if (block.v_scales) p *= load(block.v_scales + i);
      store_weights(p, weights, i);
    }
    store(totals + row * kLanes, sum);
  }

  static void store_weights(Vec p, float* weights, int at) {
#if PAGODA_DPBF16
    if (Math::kPerWord == 2) {
      _mm256_storeu_si256((__m256i*)(weights + at / 2), (__m256i)_mm512_cvtneps_pbh(p));
      return;
    }
#endif
    store(weights + at, p);
  }

  void attend(Block<Math>& block, int64_t begin, Ahead& ahead) {
    const int64_t slots = padded(block.count), slot_words = Block<Math>::words_of(block.count);
    Logits found[kRowsAtOnce];
    for (int blocks = (rows + kRowsAtOnce - 1) / kRowsAtOnce, row = 0; blocks > 0; --blocks) {
      const int here = (rows - row + blocks - 1) / blocks;  // even shares: 7 rows are 4 + 3, not 6 + 1
      product<Math>(here, queries + row * k_words, k_words, block.keys, kBlock, k_words, slots, scores, kBlock, false, ahead);
      rise_all(row, here, begin, block, found);
      for (int r = 0; r < here; ++r) {
        ahead.lines(8);
        weigh(row + r, scores + r * kBlock, found[r], probs + r * kBlock, block);
      }
      product<Math>(here, probs, kBlock, block.values, v_stride, slot_words, v_stride, sums + row * v_stride, v_stride, true, ahead);
      row += here;
    }
  }

#if PAGODA_DPBF16
  // Lines asked for while a row is weighed, beside those between products: so many that a block of int8 is under way before the
  // products of its values begin (4096 slots in memory, 24 layers on one core: 2.13 ms; with ten 2.66, with none 3.2; 24: as 16).
  static constexpr int kLinesARow = 16;

  // The same for few rows, from the slots themselves.
  void attend_few(Block<Math>& block, const Slots& slots, int64_t begin, Ahead& ahead) {
    Logits found[kFewRows];
    with_few(rows, [&](auto products) {
      products.scores(queries, k_words, slots.k8, slots.count, scores, kBlock, ahead);
      rise_all(0, rows, begin, block, found);
      for (int r = 0; r < rows; ++r) {
        ahead.lines(kLinesARow);
        weigh(r, scores + r * kBlock, found[r], probs + r * kBlock, block);
      }
      products.values(probs, kBlock, slots.v8, slots.count, a.v_dim, sums, v_stride, ahead);
    });
  }

  void attend_bytes(Block<Math>& block, const Slots& slots, int64_t begin, Ahead& ahead) {
    const int lanes = int(padded(block.count));
    ByteScales scales;
    scales.prepare(block.v_scales, lanes);
    Logits found[kFewRows];
    Vec highs[kFewRows] = {};
    ByteSteps steps;
    for (int blocks = (rows + kFewRows - 1) / kFewRows, row = 0; blocks > 0; --blocks) {
      const int here = (rows - row + blocks - 1) / blocks;
      with_few_bytes(here, [&](auto products) {
        products.scores(byte_rows, row, a.shape.k_dim, slots.k8, block.k_scales, slots.count, scores, kBlock, ahead);
        bool alike = true;
        for (int r = 0; r < here; ++r) {
          prepare_logits(a, scores + r * kBlock, block.count, begin, masks[row + r], slopes[row + r], nullptr, found + r);
          alike = alike && found[r].unit == found[0].unit;
        }
        if (alike) products.highs(scores, kBlock, lanes, found[0].unit, scales.logs, highs);
        else
          for (int r = 0; r < here; ++r) find_highs<1>(scores + r * kBlock, kBlock, lanes, found[r].unit, scales.logs, highs + r);
        steps.rise(highs, here, tops + row);
        for (int r = 0; r < here; ++r) {
          ahead.lines(kLinesARow);
          uint8_t* weights = byte_rows.weights + r * kBlock;
          const auto weigh = found[r].masked ? weigh_bytes<true> : weigh_bytes<false>;
          const Vec sum = weigh(scores + r * kBlock, lanes, found[r].unit, steps.references[r], scales, weights);
          float* total = totals + (row + r) * kLanes;
          store(total, load(total) * steps.before[r] + sum * steps.now[r]);
        }
        products.values(byte_rows, kBlock, slots.v8, slots.count, a.v_dim, steps, scales.broken, sums + row * v_stride, v_stride, ahead);
      });
      row += here;
    }
  }
#endif

  // How slots meet the rows: where they lie (few rows), or packed.
  bool few() const {
#if PAGODA_DPBF16
    return Math::kPerWord == 2 && rows <= kFewRows && k_words % 4 == 0 && a.v_dim % 16 == 0 &&
           (!Math::native(a.shape) || (a.shape.page_size % kEight == 0 && item.slot_begin % kEight == 0));
#else
    return false;
#endif
  }
  bool in_place() const { return bytes || (few() && Math::native(a.shape)); }

  void work(Block<Math>& block, const PageRow& pages, Slots& slots, int64_t begin, const Slots& next) {
    Ahead ahead{next.pages, next.num_pages, a.shape.page_bytes};
    if (in_place()) block.open_eights(pages, slots);
    else block.widen(slots, true, ahead);
    multiply(block, slots, begin, ahead);
    ahead.lines(next.num_pages * int(a.shape.page_bytes / 64));  // what found no place between the products
  }

  void multiply(Block<Math>& block, Slots& slots, int64_t begin, Ahead& ahead) {
#if PAGODA_DPBF16
    if (bytes) return attend_bytes(block, slots, begin, ahead);
    if (few()) return attend_few(block, slots, begin, ahead);
#endif
    block.pack(slots, true, ahead);
    attend(block, begin, ahead);
  }

  void write_partials(int64_t part) const {
    int64_t row = 0;
    for (int s = item.span_begin; s < item.span_end; ++s) {
      const int64_t queries_here = spans[s].q_end - spans[s].q_begin, here = queries_here * group;
      float* to = out.partials + spans[s].partial + part * partial_floats(a, queries_here);
      for (int64_t r = 0; r < here; ++r, ++row) {
        memcpy(to + r * a.v_dim, sums + row * v_stride, sizeof(float) * a.v_dim);
        to[here * a.v_dim + r] = tops[row];
        to[here * (a.v_dim + 1) + r] = total(row);
      }
    }
  }

  void write_results() const;

  static int64_t block_end(const AttentionItem& it, int64_t from) {
    const int64_t end = (from / kBlock + 1) * kBlock;
    return end < it.slot_end ? end : int64_t{it.slot_end};
  }

  void find(const PageRow& pages, int64_t at, Slots& slots) const {
    if (in_place()) pages.find_eights(at, block_end(item, at), slots);
    else pages.find(at, block_end(item, at), slots);
  }

  // Where the slots lie that are attended after those up to `at`: of this item, else the first of `soon`.
  void find_next(const PageRow& pages, int64_t at, const AttentionItem* soon, Slots& next) const {
    next.num_pages = 0;
    if (at < item.slot_end) return find(pages, at, next);
    if (soon == nullptr || soon->slot_begin == soon->slot_end) return;
    const PageRow others(a, spans[soon->span_begin].seq, soon->head);
    others.walk(soon->slot_begin, block_end(*soon, soon->slot_begin), next, [](auto...) {});
  }

  void run(const AttentionItem* soon) {
    prepare();
    const PageRow pages(a, spans[item.span_begin].seq, item.head);
    Block<Math> block(a, block_space);
    Slots slots[2];
    const bool parts = spans[item.span_begin].partial >= 0;
    int64_t at = item.slot_begin, part = 0;
    restart();
    if (at < item.slot_end) find(pages, at, slots[0]);
    for (int turn = 0; at < item.slot_end; turn ^= 1) {
      const int64_t end = block_end(item, at);
      find_next(pages, end, soon, slots[turn ^ 1]);
      work(block, pages, slots[turn], at, slots[turn ^ 1]);
      at = end;
      if (parts && (at % kPartSlots == 0 || at == item.slot_end)) {
        write_partials(part++);
        restart();
      }
    }
    if (!parts) write_results();
  }
};

// ---- results ----------------------------------------------------------------------------------------------------------------------------

inline void write_row(const AttentionArgs& a, int64_t token, int64_t q_head, const float* sums, float factor) {
  const int64_t at = (token * a.num_q_heads + q_head) * a.v_dim;
  for (int64_t d = 0; d < a.v_dim; ++d) {
    const float x = sums[d] * factor;
    if (a.dtype == Dtype::f32) ((float*)a.out)[at + d] = x;
    else if (a.dtype == Dtype::bf16) narrow(x, (uint16_t*)a.out + at + d);
    else ((uint16_t*)a.out)[at + d] = float_to_half(x);
  }
}

// The sink joins the denominator; a row that saw nothing yields zeros.
inline void finish_row(const AttentionArgs& a, const AttentionScratch& out, int64_t token, int64_t q_head, const float* sums,
                       float top, float total) {
  float factor = total > 0.0f ? 1.0f / total : 0.0f;
  if (a.sinks) {
    const float sink = a.sinks[q_head] * kLog2E, higher = top > sink ? top : sink;
    const float weight = top == -kInf ? 0.0f : exp2_of(top - higher);
    total = total * weight + exp2_of(sink - higher);
    factor = weight / total;
    top = higher;
  }
  write_row(a, token, q_head, sums, factor);
  if (out.norms) {
    out.norms[2 * (token * a.num_q_heads + q_head)] = top;
    out.norms[2 * (token * a.num_q_heads + q_head) + 1] = total > 0.0f ? 1.0f / total : 0.0f;
  }
}

template <typename Math>
void Tile<Math>::write_results() const {
  each_row([&](int row, const Span& span, int query, int64_t q_head) {
    finish_row(a, out, a.q_starts[span.seq] + query, q_head, sums + row * v_stride, tops[row], total(row));
  });
}

// Adds the parts of each row in their order, each weighted by 2^(its maximum - the common one).
void merge_parts(const AttentionArgs& a, const Merge& merge, const AttentionScratch& out) {
  const int64_t queries = a.num_queries(merge.seq), rows = queries * a.group(), size = partial_floats(a, queries);
  const float *parts = out.partials + merge.first, *tops = parts + rows * a.v_dim, *totals = tops + rows;
  float* sums = scratch.need(padded(a.v_dim) + merge.count * kLanes);
  float* weights = sums + padded(a.v_dim);  // [part][kLanes rows]
  for (int64_t first = 0; first < rows; first += kLanes) {
    const int64_t here = rows - first < kLanes ? rows - first : kLanes;
    Vec top = splat(-kInf), total{};
    for (int64_t i = 0; i < merge.count; ++i) top = maximum(load_some(tops + i * size + first, here), top);
    for (int64_t i = 0; i < merge.count; ++i) {
      const Vec own = load_some(tops + i * size + first, here), weight = select(own == splat(-kInf), Vec{}, exp2_of(own - top));
      total += weight * load_some(totals + i * size + first, here);
      store(weights + i * kLanes, weight);
    }
    for (int64_t r = 0; r < here; ++r) {
      const int64_t row = first + r, token = a.q_starts[merge.seq] + row / a.group();
      memset(sums, 0, sizeof(float) * a.v_dim);
      for (int64_t i = 0; i < merge.count; ++i) {
        const float weight = weights[i * kLanes + r], *part = parts + i * size + row * a.v_dim;
        if (weight == 0.0f) continue;  // it saw nothing
        for (int64_t d = 0; d < a.v_dim; ++d) sums[d] += weight * part[d];
      }
      finish_row(a, out, token, merge.head * a.group() + row % a.group(), sums, top[r], total[r]);
    }
  }
}

// ---- probability sums: scores once more, now that every row's maximum and denominator are known -------------------------------------------

constexpr float kMean = 0.99999f;  // what is equal but for rounding counts as the mean

template <typename Math>
void sum_probabilities(const AttentionArgs& a, const SumItem& item, const AttentionScratch& out) {
  const int64_t group = a.group(), k_words = Block<Math>::words_of(a.shape.k_dim), queries = a.num_queries(item.seq);
  const int64_t first = a.sum_last && a.sum_last < queries ? queries - a.sum_last : 0;
  const int64_t own = a.kv_lens[a.pair(item.seq, item.head)] - queries;  // slot of query 0
  float* at = scratch.need(kRowsAtOnce * (k_words + kBlock) + Block<Math>::floats(a) + 64);
  float *query = at, *scores = query + padded(kRowsAtOnce * k_words);
  Block<Math> block(a, scores + kRowsAtOnce * kBlock);
  const PageRow pages(a, item.seq, item.head);
  Slots slots;
  Ahead none;
  const int64_t pair_at = a.pair(item.seq, item.head) * a.sums_stride;
  for (int64_t begin = item.slot_begin; begin < item.slot_end; begin += kBlock) {
    const int64_t end = begin + kBlock < item.slot_end ? begin + kBlock : int64_t{item.slot_end};
    pages.find(begin, end, slots);
    block.widen(slots, false, none);
    block.pack(slots, false, none);
    float total[kBlock] = {}, wanted[kBlock] = {};
    // Queries before `begin` see none of these slots, nor do those whose window has passed them.
    for (int64_t row = (first > begin - own ? first : begin - own) * group; row < queries * group;) {
      const int here = int(queries * group - row < kRowsAtOnce ? queries * group - row : kRowsAtOnce);
      if (a.window && own + row / group - a.window + 1 >= end) break;
      for (int r = 0; r < here; ++r) {
        const int64_t token = a.q_starts[item.seq] + (row + r) / group;
        pack_query<Math>(a, token, item.head * group + (row + r) % group, query + r * k_words);
      }
      product<Math>(here, query, k_words, block.keys, kBlock, k_words, padded(block.count), scores, kBlock, false, none);
      for (int r = 0; r < here; ++r, ++row) {
        const int64_t q_head = item.head * group + row % group, last = own + row / group;
        const float* norm = out.norms + 2 * ((a.q_starts[item.seq] + row / group) * a.num_q_heads + q_head);
        const Mask mask{a.window ? last - a.window + 1 : 0, last};
        if (last < begin || norm[0] == -kInf) continue;
        float* s = scores + r * kBlock;
        Logits found;
        logits_of(a, s, block.count, begin, mask, a.slopes ? a.slopes[q_head] : 0.0f, block.k_scales, &found);
        const Vec mean = splat(kMean / float(last + 1 - (mask.first > 0 ? mask.first : 0)));
        for (int i = 0; i < block.count; i += kLanes) {
          const Vec x = load(s + i), p = select(x == splat(-kInf), Vec{}, exp2_of(x * found.unit - norm[0])) * norm[1];
          store(total + i, load(total + i) + p);
          if (a.prob_counts) store(wanted + i, load(wanted + i) + select(p >= mean, splat(1.0f), Vec{}));
        }
      }
    }
    memcpy(a.prob_sums + pair_at + begin, total, sizeof(float) * block.count);
    if (a.prob_counts) memcpy(a.prob_counts + pair_at + begin, wanted, sizeof(float) * block.count);
  }
}

// Pairs where the queries are bfloat16 and so are the pages' numbers (codes are, without loss; decoded int4 is rounded).
inline bool in_pairs(const AttentionArgs& a) {
#if PAGODA_DPBF16
  return a.dtype == Dtype::bf16 && a.shape.store != Store::f32 && a.shape.store != Store::f16;
#else
  (void)a;
  return false;
#endif
}

}  // namespace

namespace PAGODA_ISA {

void run_item(const AttentionArgs& args, const Span* spans, const AttentionItem& item, const AttentionItem* soon,
              const AttentionScratch& out) {
#if PAGODA_DPBF16
  if (in_pairs(args)) return Tile<Pairs>(args, spans, item, out).run(soon);
#endif
  Tile<Floats>(args, spans, item, out).run(soon);
}

void run_merge(const AttentionArgs& args, const Merge& merge, const AttentionScratch& out) { merge_parts(args, merge, out); }

void run_sums(const AttentionArgs& args, const SumItem& item, const AttentionScratch& out) {
#if PAGODA_DPBF16
  if (in_pairs(args)) return sum_probabilities<Pairs>(args, item, out);
#endif
  sum_probabilities<Floats>(args, item, out);
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
