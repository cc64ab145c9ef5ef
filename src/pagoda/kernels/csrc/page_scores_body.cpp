// Scores of pages, for one instruction set (page_scores.hpp).
#include "attention_few.hpp"
#include "attention_rows.hpp"
#include "page_scores.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

// Calls act(integral constant) for every eight heads and what is left: head, heads of them at once.
template <int kHeads>
struct Heads {
  static constexpr int value = kHeads;
};

template <typename Act>
void by_heads(int64_t heads, Act act) {
  for (int64_t head = 0; head < heads; head += 8) {
    switch (heads - head) {
      case 1: act(head, Heads<1>{}); break;
      case 2: act(head, Heads<2>{}); break;
      case 3: act(head, Heads<3>{}); break;
      case 4: act(head, Heads<4>{}); break;
      case 5: act(head, Heads<5>{}); break;
      case 6: act(head, Heads<6>{}); break;
      case 7: act(head, Heads<7>{}); break;
      default: act(head, Heads<8>{});
    }
  }
}

// Products of kHeads queries with one row: a register of the row is read once for all heads.
template <int kHeads>
inline void row_products(const float* queries, int64_t width, const float* row, float (&out)[kHeads]) {
  Vec sum[kHeads];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) sum[h] = Vec{};
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) {
    const Vec part = load(row + d);
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) sum[h] += load(queries + h * width + d) * part;
  }
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
    out[h] = total_of(sum[h]);
    for (int64_t i = d; i < width; ++i) out[h] += queries[h * width + i] * row[i];
  }
}

// products [heads][ld]: of `count` rows.
void store_row_products(const float* queries, int64_t heads, int64_t width, const float* rows, int64_t stride, int64_t count,
                        float* products, int64_t ld) {
  by_heads(heads, [&](int64_t head, auto n) {
    float found[n.value];
    for (int64_t i = 0; i < count; ++i) {
      row_products<n.value>(queries + head * width, width, rows + i * stride, found);
      for (int h = 0; h < n.value; ++h) products[(head + h) * ld + i] = found[h];
    }
  });
}

void best_of_rows(const PageScoreArgs& a, const PreparedQueries& q) {
  const float* rows = (const float*)a.marks;
  const int64_t stride = a.rule.stride, per_page = a.rule.per_page;
  by_heads(a.heads, [&](int64_t head, auto n) {
    float found[n.value];
    for (int64_t page = 0; page < a.pages; ++page) {
      float best = head ? a.out[page] : -kInf;
      for (int64_t b = 0; b < per_page; ++b) {
        row_products<n.value>(q.queries + head * q.width, q.width, rows + (page * per_page + b) * stride, found);
        for (const float one : found) best = one > best ? one : best;
      }
      a.out[page] = best;
    }
  });
}

constexpr int64_t kNumbersAhead = 256;  // of each channel, of which more are read at once than the machine follows by itself

inline Vec load_columns(const uint16_t* at, int64_t count) {
  if (count >= kLanes) return load(at);
  uint16_t some[kLanes] = {};
  memcpy(some, at, 2 * count);
  return load(some);
}

// sum[head] += queries . channels of a register of slots, channel by channel; what lies in them a little further on is fetched.
template <int kHeads>
inline void column_products(const PageScoreArgs& a, const PreparedQueries& q, int64_t head, const uint16_t* columns, int64_t slots,
                            Vec (&sum)[kHeads]) {
  const float* queries = q.queries + head * q.width;
  const int64_t channel = a.room * a.rule.per_page;
  for (int64_t w = 0; w < q.width; ++w) {
    const uint16_t* at = columns + (q.channels ? q.channels[w] : w) * channel;
    __builtin_prefetch(at + kNumbersAhead);
    const Vec part = load_columns(at, slots);
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) sum[h] += splat(queries[h * q.width + w]) * part;
  }
}

// The same for channels in pairs.
template <int kHeads>
inline void pair_products(const PageScoreArgs& a, const PreparedQueries& q, int64_t head, const uint16_t* pairs, int64_t slots,
                          Vec (&sum)[kHeads]) {
  const int64_t words = q.width / 2;
  for (int64_t w = 0; w < words; ++w, pairs += 2 * a.rule.per_page) {
    UintVec both{};
    if (slots == kLanes) memcpy(&both, pairs, sizeof both);
    else memcpy(&both, pairs, 4 * slots);  // a call
#if PAGODA_DPBF16
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) sum[h] = Pairs::step(sum[h], splat_word(q.words + (head + h) * words + w), (__m512)both);
#else
    const Vec first = (Vec)(both << 16), second = (Vec)(both & 0xffff0000u);
    const float* queries = q.queries + head * q.width + 2 * w;
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) sum[h] += splat(queries[h * q.width]) * first + splat(queries[h * q.width + 1]) * second;
#endif
  }
}

// Calls use(head, page, first slot, slots, products [kHeads]) for all slots of all pages, a register of slots at a time.
template <typename Use>
void each_column(const PageScoreArgs& a, const PreparedQueries& q, Use use) {
  const int64_t per_page = a.rule.per_page, apart = a.rule.kind() == Marks::pairs ? a.rule.stride * per_page : per_page;
  by_heads(a.heads, [&](int64_t head, auto n) {
    for (int64_t page = 0; page < a.pages; ++page) {
      const uint16_t* columns = (const uint16_t*)a.marks + page * apart;
      for (int64_t slot = 0; slot < per_page; slot += kLanes) {
        const int64_t slots = per_page - slot < kLanes ? per_page - slot : kLanes;
        Vec sum[n.value];
#pragma GCC unroll 8
        for (int h = 0; h < n.value; ++h) sum[h] = Vec{};
        if (a.rule.kind() == Marks::pairs) pair_products(a, q, head, columns + 2 * slot, slots, sum);
        else column_products(a, q, head, columns + slot, slots, sum);
        use(head, page, slot, slots, sum);
      }
    }
  });
}

void best_of_columns(const PageScoreArgs& a, const PreparedQueries& q) {
  each_column(a, q, [&](int64_t head, int64_t page, int64_t slot, int64_t slots, auto& sum) {
    Vec top = splat(-kInf);
    for (const Vec& one : sum) top = maximum(one, top);
    float lanes[kLanes], best = head || slot ? a.out[page] : -kInf;
    store(lanes, top);
    for (int64_t i = 0; i < slots; ++i) best = lanes[i] > best ? lanes[i] : best;
    a.out[page] = best;
  });
}

void store_column_products(const PageScoreArgs& a, const PreparedQueries& q, float* products, int64_t ld) {
  each_column(a, q, [&](int64_t head, int64_t page, int64_t slot, int64_t, auto& sum) {
    float* to = products + head * ld + page * a.rule.per_page + slot;
    for (const Vec& one : sum) store(to, one), to += ld;  // lanes behind the page's slots are the next page's
  });
}

#if PAGODA_DPBF16

// Pages of bfloat16 and queries that are: as attention multiplies them.
void store_pair_products(const PageScoreArgs& a, const PreparedQueries& q, float* room, float* products, int64_t ld) {
  const int64_t words = a.dim / 2, per_page = a.rule.per_page;
  uint16_t* packed = (uint16_t*)room;
  for (int64_t i = 0; i < a.heads * a.dim; ++i) narrow(q.queries[i], packed + i);
  const auto keys_of = [&](int64_t page) { return a.storage + (a.ids[page] + a.offset) * a.shape.page_bytes + a.shape.k.at; };
  for (int64_t page = 0; page < a.pages; ++page) {
    const char* keys = keys_of(page);
    const int64_t ahead = page + 4 < a.pages ? page + 4 : a.pages - 1;
    Lines soon{keys_of(ahead), keys_of(ahead) + per_page * a.shape.k.bytes - 64};
    for (int64_t slot = 0; slot < per_page; slot += 16) {
      const char* first = keys + slot * a.shape.k.bytes;
      by_heads(a.heads, [&](int64_t head, auto n) {
        few_scores<n.value>(room + head * words, words, first, first + kEight * a.shape.k.bytes, a.shape.k.bytes,
                            products + head * ld + page * per_page + slot, ld, soon);
      });
      soon.at = soon.at + 64 * words < soon.last ? soon.at + 64 * words : soon.last;
    }
  }
}

#endif

// One page after the other, as numbers.
void store_key_products(const PageScoreArgs& a, const PreparedQueries& q, float* room, float* products, int64_t ld) {
  const int64_t per_page = a.rule.per_page;
#if PAGODA_DPBF16
  if (a.shape.store == Store::bf16 && a.dim % 8 == 0 && per_page % 16 == 0 && q.are_bf16) return store_pair_products(a, q, room, products, ld);
#endif
  for (int64_t page = 0; page < a.pages; ++page) {
    const char* at = a.storage + (a.ids[page] + a.offset) * a.shape.page_bytes;
    for (int64_t slot = 0; slot < per_page; ++slot) {
      const char* scales = at + a.shape.k_scales.at + slot * a.shape.k_scales.bytes;
      float* row = room + slot * a.dim;
      widen_row(a.shape.store, at + a.shape.k.at + slot * a.shape.k.bytes, scales, a.dim, row);
      if (a.shape.store == Store::int8 || a.shape.store == Store::fp8) {
        const float unit = widen(*(const uint16_t*)scales);
        for (int64_t d = 0; d < a.dim; ++d) row[d] *= unit;
      }
    }
    store_row_products(q.queries, a.heads, a.dim, room, a.dim, per_page, products + page * per_page, ld);
  }
}

// products [heads][ld] of `count` numbers become e^(scale * (x - the head's largest)), over their sum where it is a softmax; the heads
// together (sum or largest) go to `worth`.
void weigh(const PageScoreArgs& a, float* products, int64_t ld, int64_t count, float* worth) {
  const int64_t padded_count = padded(count);
  for (int64_t i = 0; i < padded_count; i += kLanes) store(worth + i, Vec{});
  for (int64_t h = 0; h < a.heads; ++h) {
    float* x = products + h * ld;
    for (int64_t i = count; i < padded_count; ++i) x[i] = -kInf;
    Vec top = splat(-kInf), sum{};
    for (int64_t i = 0; i < padded_count; i += kLanes) top = maximum(load(x + i), top);
    float lanes[kLanes], most = -kInf;
    store(lanes, top);
    for (const float one : lanes) most = one > most ? one : most;
    for (int64_t i = 0; i < padded_count; i += kLanes) {
      const Vec e = exponential((load(x + i) - splat(most)) * a.scale);
      sum += e;
      store(x + i, e);
    }
    const Vec unit = splat(Weigh(a.rule.weigh) == Weigh::softmax ? 1.0f / total_of(sum) : 1.0f);
    for (int64_t i = 0; i < padded_count; i += kLanes) {
      const Vec share = load(x + i) * unit, before = load(worth + i);
      store(worth + i, a.rule.sum_heads ? before + share : maximum(share, before));
    }
  }
}

void sum_slots(const float* worth, int64_t pages, int64_t per_page, float* out) {
  if (per_page == 1) {
    memcpy(out, worth, sizeof(float) * pages);
    return;
  }
  for (int64_t page = 0; page < pages; ++page, worth += per_page) {
    int64_t i = 0;
    Vec sum{};
    for (; i + kLanes <= per_page; i += kLanes) sum += load(worth + i);
    float total = i ? total_of(sum) : 0.0f;
    for (; i < per_page; ++i) total += worth[i];
    out[page] = total;
  }
}

// In double, so that pages of the same codes in another order are worth the same.
void sum_codes(const float* worth, const PageScoreArgs& a) {
  const int16_t* codes = (const int16_t*)a.marks;
  for (int64_t page = 0; page < a.pages; ++page) {
    double total = 0.0;
    for (int64_t i = 0; i < a.rule.per_page; ++i) total += worth[*codes++];
    a.out[page] = float(total);
  }
}

}  // namespace

namespace PAGODA_ISA {

void run_page_scores(const PageScoreArgs& a, const PreparedQueries& q) {
  if (Weigh(a.rule.weigh) == Weigh::product) return a.rule.kind() == Marks::rows ? best_of_rows(a, q) : best_of_columns(a, q);
  const int64_t count = products_of(a), ld = count + kPageScorePad;
  float *products = q.room, *worth = products + a.heads * ld, *room = worth + count + kPageScorePad;
  switch (a.rule.kind()) {
    case Marks::rows: store_row_products(q.queries, a.heads, q.width, (const float*)a.marks, a.rule.stride, count, products, ld); break;
    case Marks::codes: store_row_products(q.queries, a.heads, q.width, a.given, q.width, count, products, ld); break;
    case Marks::columns:
    case Marks::pairs: store_column_products(a, q, products, ld); break;
    case Marks::keys: store_key_products(a, q, room, products, ld); break;
  }
  weigh(a, products, ld, count, worth);
  if (a.rule.kind() == Marks::codes) sum_codes(worth, a);
  else sum_slots(worth, a.pages, a.rule.per_page, a.out);
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
