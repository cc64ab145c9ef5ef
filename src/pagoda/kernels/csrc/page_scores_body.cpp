// Scores of pages, for one instruction set (page_scores.hpp).
#include "page_best.hpp"
#include "page_products.hpp"

namespace pagoda {
namespace {

template <typename Number>
void best_of_rows(const PageScoreArgs& a, const PreparedQueries& q) {
  const Number* const rows = (const Number*)a.marks;
  const int64_t stride = a.rule.stride, per_page = a.rule.per_page, count = a.pages * per_page;
  for (int64_t page = 0; page < a.pages; ++page) a.out[page] = -kInf;
  by_heads(a.heads, [&](int64_t head, auto n) {
    const float* queries = q.queries + head * q.width;
    float found[2 * n.value];
    int64_t page = 0, left = per_page;  // rows of the page
    const auto take = [&](const float* some) {
      float best = a.out[page];
      for (int h = 0; h < n.value; ++h) best = some[h] > best ? some[h] : best;
      a.out[page] = best;
      if (--left == 0) ++page, left = per_page;
    };
    int64_t i = 0;
    for (; i + 2 <= count; i += 2) {
      row_products<n.value, 2>(queries, q.width, rows + i * stride, stride, found);
      take(found), take(found + n.value);
    }
    if (i == count) return;
    row_products<n.value, 1>(queries, q.width, rows + i * stride, stride, found);
    take(found);
  });
}

void best_of_columns(const PageScoreArgs& a, const PreparedQueries& q) {
  each_column(a, q, {0, a.pages}, [&](int64_t head, int64_t page, int64_t slot, int64_t slots, auto& sum) {
    Vec top = splat(-kInf);
    for (const Vec& one : sum) top = maximum(one, top);
    if (slots < kLanes) {
      float lanes[kLanes];
      store(lanes, top);
      for (int64_t i = slots; i < kLanes; ++i) lanes[i] = -kInf;
      top = load(lanes);
    }
    const float best = head || slot ? a.out[page] : -kInf, here = largest(top);
    a.out[page] = here > best ? here : best;
  });
}

constexpr int64_t kPagesAtOnce = 16;  // whose products stay in the first cache until they are summed
constexpr float kLowest = -3e38f;

// What some pages came to for one head: their slots' largest product, the sum of 2^(product - largest), and what that is beside all.
struct Part {
  float top, sum, share;
};

// totals[page]: the sum over the slots of one of `count` pages.
Part sum_part(const float* products, int64_t count, int64_t per_page, float unit, float* totals) {
  Vec top = splat(kLowest);
  for (int64_t i = 0; i < count * per_page; i += kLanes) top = maximum(load(products + i), top);
  Part part{largest(top), 0.0f, 0.0f};
  for (int64_t page = 0; page < count; ++page, products += per_page) {
    Vec weights{};
    for (int64_t i = 0; i < per_page; i += kLanes) weights += exp2_of((load(products + i) - splat(part.top)) * unit);
    totals[page] = total_of(weights), part.sum += totals[page];
  }
  return part;
}

// Whether a page's worth is a sum over its heads and slots: then it can be taken a few pages at a time.
bool sums_by_part(const PageRule& rule) {
  return rule.sum_heads && rule.kind() != Marks::rows && rule.kind() != Marks::halves && rule.kind() != Marks::codes && rule.per_page % kLanes == 0;
}

// What weigh() and sum_slots() come to then, while products are in the first cache and the next keys on their way: each part is
// weighed beside a largest product of its own, which is put right at the end. Needs less of the room than they.
void sum_by_part(const PageScoreArgs& a, const PreparedQueries& q) {
  const int64_t per_page = a.rule.per_page, together = a.pages < kPagesAtOnce ? a.pages : kPagesAtOnce;
  const int64_t count = (a.pages + kPagesAtOnce - 1) / kPagesAtOnce;
  const Products products{q.room, together * per_page};
  float* const totals = products.at + a.heads * products.ld;
  Part* const parts = (Part*)(totals + a.heads * a.pages);
  float* const room = (float*)(parts + a.heads * count);
  const float unit = a.scale * 1.44269504f;  // of e^x, as 2^x
  for (int64_t i = 0; i < count; ++i) {
    const Pages pages{i * kPagesAtOnce, i + 1 < count ? (i + 1) * kPagesAtOnce : a.pages};
    store_slot_products(a, q, pages, room, products);
    for (int64_t h = 0; h < a.heads; ++h)
      parts[h * count + i] = sum_part(products.at + h * products.ld, pages.end - pages.first, per_page, unit, totals + h * a.pages + pages.first);
  }
  for (int64_t page = 0; page < a.pages; ++page) a.out[page] = 0.0f;
  for (int64_t h = 0; h < a.heads; ++h) {
    Part* const mine = parts + h * count;
    float top = kLowest, sum = 0.0f;
    for (int64_t i = 0; i < count; ++i) top = mine[i].top > top ? mine[i].top : top;
    for (int64_t i = 0; i < count; ++i) mine[i].share = exp2_of((mine[i].top - top) * unit), sum += mine[i].sum * mine[i].share;
    const float all = Weigh(a.rule.weigh) == Weigh::softmax ? 1.0f / sum : 1.0f;
    for (int64_t page = 0; page < a.pages; ++page) a.out[page] += totals[h * a.pages + page] * mine[page / kPagesAtOnce].share * all;
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

void best_pages(const float* scores, int64_t count, int64_t keep, bool first_page, int32_t* keys, int32_t* out) {
  constexpr int32_t kMost = 0x7fffffff;
  order(scores, count, keys);
  keys[count - 1] = kMost;
  if (first_page) keys[0] = kMost;
  largest_keys(keys, count, keep, out);
}

void run_page_scores(const PageScoreArgs& a, const PreparedQueries& q) {
  if (a.rule.kind() == Marks::columns) fetch_columns(a, q);
  if (Weigh(a.rule.weigh) == Weigh::product) {
    if (a.rule.kind() == Marks::rows) return best_of_rows<float>(a, q);
    return a.rule.kind() == Marks::halves ? best_of_rows<uint16_t>(a, q) : best_of_columns(a, q);
  }
  if (sums_by_part(a.rule)) return sum_by_part(a, q);
  const int64_t count = products_of(a), ld = count + kPageScorePad;
  float *products = q.room, *worth = products + a.heads * ld, *room = worth + count + kPageScorePad;
  switch (a.rule.kind()) {
    case Marks::rows: store_row_products(q.queries, a.heads, q.width, (const float*)a.marks, a.rule.stride, count, products, ld); break;
    case Marks::halves: store_row_products(q.queries, a.heads, q.width, (const uint16_t*)a.marks, a.rule.stride, count, products, ld); break;
    case Marks::codes: store_row_products(q.queries, a.heads, q.width, a.given, q.width, count, products, ld); break;
    default: store_slot_products(a, q, {0, a.pages}, room, {products, ld});
  }
  weigh(a, products, ld, count, worth);
  if (a.rule.kind() == Marks::codes) sum_codes(worth, a);
  else sum_slots(worth, a.pages, a.rule.per_page, a.out);
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
