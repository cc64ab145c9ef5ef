// Scores of pages, for one instruction set (page_scores.hpp).
#include "across.hpp"
#include "page_best.hpp"
#include "page_pairs.hpp"
#include "page_products.hpp"
#include "page_shares.hpp"

namespace pagoda {
namespace {

template <typename Number>
void best_of_rows(const PageScoreArgs& a, const PreparedQueries& q, const Soon& soon) {
  const Number* const rows = (const Number*)a.marks;
  const int64_t stride = a.rule.stride, per_page = a.rule.per_page, count = a.pages * per_page;
  const char* const end = (const char*)(rows + count * stride);
  Asking asking(soon, (count + 1) / 2 * ((a.heads + 7) / 8));
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
      const Number* const row = rows + i * stride;
      row_products<n.value, 2>(queries, q.width, row, stride, within((const char*)row, end, kRowsAhead), found);
      take(found), take(found + n.value), asking.step();
    }
    if (i == count) return;
    row_products<n.value, 1>(queries, q.width, rows + i * stride, stride, 0, found);
    take(found), asking.step();
  });
}

// Lane i: the sum of the i-th of kLanes registers that lie one behind the other.
Vec totals_of(const float* registers) {
#if defined(__AVX512F__)
  const auto at = [&](int i) { return _mm512_loadu_ps(registers + kLanes * i); };
  // Four registers to one: a lane of each, which is what their lanes come to.
  const auto four = [&](int i) {
    const __m512 a = at(i), b = at(i + 1), c = at(i + 2), d = at(i + 3);
    const __m512 ab = _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xee);
    const __m512 cd = _mm512_shuffle_f32x4(c, d, 0x44) + _mm512_shuffle_f32x4(c, d, 0xee);
    return _mm512_shuffle_f32x4(ab, cd, 0x88) + _mm512_shuffle_f32x4(ab, cd, 0xdd);
  };
  const __m512 a = four(0), b = four(4), c = four(8), d = four(12);
  const __m512 ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b), cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
  const __m512 all = _mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xee);  // [lane][four]: of register 4 * four + lane
  return (Vec)_mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), all);
#else
  float totals[kLanes];
  for (int i = 0; i < kLanes; ++i) totals[i] = total_of(load(registers + kLanes * i));
  return load(totals);
#endif
}

// To `out` the first `count` of kLanes numbers.
void store_some(float* out, Vec numbers, int64_t count) {
  if (count >= kLanes) store(out, numbers);
  else memcpy(out, &numbers, sizeof(float) * count);
}

// A page's best. Brought across lanes sixteen pages at a time it took 3 to 7 % longer.
void best_of_registers(const PageScoreArgs& a, const PreparedQueries& q, const Soon& soon) {
  Asking asking(soon, register_steps(a));
  each_register(a, q, {0, a.pages}, asking, [&](int64_t head, int64_t page, int64_t slot, int64_t slots, auto& totals, const float* units, Vec scales) {
    Vec top = floats_of(totals[0]) * units[0];
#pragma GCC unroll 8
    for (int64_t h = 1; h < int64_t(sizeof totals / sizeof totals[0]); ++h) top = maximum(floats_of(totals[h]) * units[h], top);
    top *= scales;  // none below 0
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

// worth [codes]: room.
void best_of_codes(const PageScoreArgs& a, const float* products, int64_t ld, float* worth) {
  for (int64_t code = 0; code < a.num_given; ++code) {
    worth[code] = -kInf;
    for (int64_t h = 0; h < a.heads; ++h) worth[code] = products[h * ld + code] > worth[code] ? products[h * ld + code] : worth[code];
  }
  const int16_t* codes = (const int16_t*)a.marks;
  for (int64_t page = 0; page < a.pages; ++page) {
    float best = -kInf;
    for (int64_t i = 0; i < a.rule.per_page; ++i, ++codes) best = worth[*codes] > best ? worth[*codes] : best;
    a.out[page] = best;
  }
}

constexpr int64_t kPagesAtOnce = 32;  // whose products stay in the first cache until they are summed
constexpr float kLowest = -3e38f;

// What some pages came to for one head: their slots' largest product, the sum of 2^(product - largest), and what that is beside all.
struct Part {
  float top, sum, share;
};

Vec largest_of(const float* numbers, int64_t count) {
  Vec top[4] = {splat(kLowest), splat(kLowest), splat(kLowest), splat(kLowest)};  // so that none waits for the one before
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes)
    for (int n = 0; n < 4; ++n) top[n] = maximum(load(numbers + i + n * kLanes), top[n]);
  for (; i < count; i += kLanes) top[0] = maximum(load(numbers + i), top[0]);
  return maximum(maximum(top[0], top[1]), maximum(top[2], top[3]));
}

// The products become 2^(unit * (x - their largest, `top`)), whose sum is returned. totals[page]: the sum over the slots of one of `count`
// pages, in whole registers; room for as much is needed behind the products.
float sum_part(float* products, int64_t count, int64_t per_page, float top, float unit, float* totals) {
  const Vec less = splat(top * unit), by = splat(unit);
  Vec all[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= count * per_page; i += 2 * kLanes)
    for (int n = 0; n < 2; ++n) {
      const Vec share = share_of(fused_less(load(products + i + n * kLanes), by, less));
      store(products + i + n * kLanes, share), all[n] += share;
    }
  if (i < count * per_page) {
    const Vec share = share_of(fused_less(load(products + i), by, less));
    store(products + i, share), all[0] += share;
  }
  if (per_page > kLanes) {
    for (int64_t page = 0; page < count; ++page) {
      Vec sum{};
      for (int64_t slot = 0; slot < per_page; slot += kLanes) sum += load(products + page * per_page + slot);
      store(products + page * kLanes, sum);
    }
  }
  for (int64_t page = 0; page < count; page += kLanes) store(totals + page, totals_of(products + page * kLanes));
  return total_of(all[0] + all[1]);
}

// Whether a page's worth is a sum over its heads and slots: then it can be taken a few pages at a time.
bool sums_by_part(const PageRule& rule) {
  return rule.sum_heads && rule.kind() != Marks::rows && rule.kind() != Marks::halves && rule.kind() != Marks::codes && rule.per_page % kLanes == 0;
}

// `count` numbers, whole registers of them, become 2^(unit * x - less). Their sum.
inline Vec weigh_slots(float* x, int64_t count, float unit, float less_) {
  const Vec by = splat(unit), less = splat(less_);
  Vec sum[2] = {};
  const auto share = [&](int64_t i) {
    const Vec one = share_of(fused_less(load(x + i), by, less));
    store(x + i, one);
    return one;
  };
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) sum[0] += share(i), sum[1] += share(i + kLanes);
  if (i < count) sum[0] += share(i);
  return sum[0] + sum[1];
}

// out [pages][kLanes]: what is there, where there is `more`, and the heads' numbers [kHeads][ld], `each` of a page, by their shares. It may be
// the first head's own place.
template <int kHeads>
inline void sum_heads(const float* numbers, int64_t pages, int64_t each, int64_t ld, const float* shares, bool more, float* out) {
  Vec share[kHeads];
  for (int h = 0; h < kHeads; ++h) share[h] = splat(shares[h]);
  for (int64_t page = 0; page < pages; ++page) {
    Vec worth = more ? load(out + page * kLanes) : Vec{};
    for (int64_t slot = 0; slot < each; slot += kLanes)
#pragma GCC unroll 8
      for (int h = 0; h < kHeads; ++h) worth = fused(load(numbers + h * ld + page * each + slot), share[h], worth);
    store(out + page * kLanes, worth);
  }
}

// As sum_by_part() does it, of pages that are one part: heads are taken together before slots are. Each head's numbers are weighed beside the
// largest of the first register, not of all, which takes a pass. False where that was too little for them.
bool sum_one_part(const PageScoreArgs& a, const PreparedQueries& q, const Soon& soon) {
#if defined(__AVX512VBMI__)
  const bool in_pairs = go_in_pairs(a);
#else
  constexpr bool in_pairs = false;
#endif
  const int64_t per_page = a.rule.per_page, count = (a.pages + (in_pairs && a.pages % 2)) * per_page, ld = count;
  float* const products = q.room;
  float* const shares = products + a.heads * ld + kLanes * per_page;  // [heads]
  Asking asking(soon, (a.rule.kind() == Marks::columns ? column_steps(a) : register_steps(a)) + a.heads);
#if defined(__AVX512VBMI__)
  if (in_pairs) store_pair_products(a, q, shares + a.heads, {products, ld}, asking);
  else
#endif
  store_slot_products(a, q, {0, a.pages}, shares + a.heads, {products, ld}, asking);
  bool fit = true;
  by_heads(a.heads, [&](int64_t head, auto n) {
    Vec found[n.value];
    float tops[2 * kHeadsTogether], totals[2 * kHeadsTogether];
    for (int h = 0; h < n.value; ++h) found[h] = load(products + (head + h) * ld);
    store_across(found, larger, tops);
    for (int h = 0; h < n.value; ++h) {
      const float unit = a.scale * 1.44269504f * unit_of(a, q, head + h);
      float* const x = products + (head + h) * ld;
#if defined(__AVX512VBMI__)
      if (in_pairs) found[h] = weigh_pairs(x, a.pages, unit, tops[h] * unit);
      else
#endif
      found[h] = weigh_slots(x, count, unit, tops[h] * unit);
      asking.step();
    }
    store_across(found, plus, totals);
    for (int h = 0; h < n.value; ++h) fit &= totals[h] < 1e30f;
    for (int h = 0; h < kHeadsTogether; ++h) shares[head + h] = 1.0f / totals[h];  // behind the heads there is room
  });
  if (!fit) return false;
  const int64_t each = in_pairs ? kLanes : per_page, registers = in_pairs ? count / (2 * kLanes) : a.pages;
  by_heads(a.heads, [&](int64_t head, auto n) { sum_heads<n.value>(products + head * ld, registers, each, ld, shares + head, head > 0, products); });
  for (int64_t page = 0; page < a.pages; page += kLanes) {
#if defined(__AVX512VBMI__)
    if (in_pairs) store_some(a.out + page, totals_of_pairs(products + page / 2 * kLanes), a.pages - page);
    else
#endif
    store_some(a.out + page, totals_of(products + page * kLanes), a.pages - page);
  }
  return true;
}

// What weigh() and sum_slots() come to then, while products are in the first cache and the next keys on their way: each part is
// weighed beside a largest product of its own, which is put right at the end. Needs less of the room than they.
void sum_by_part(const PageScoreArgs& a, const PreparedQueries& q, const Soon& soon) {
  const int64_t per_page = a.rule.per_page, together = a.pages < kPagesAtOnce ? a.pages : kPagesAtOnce;
  const int64_t count = (a.pages + kPagesAtOnce - 1) / kPagesAtOnce, ld = padded(a.pages);
  Asking asking(soon, (a.rule.kind() == Marks::columns ? column_steps(a) : register_steps(a)) + count * a.heads);
  const Products products{q.room, together * per_page};
  float* const totals = products.at + a.heads * products.ld + kLanes * per_page;
  Part* const parts = (Part*)(totals + a.heads * ld);
  float* const room = (float*)(parts + a.heads * count);
  const float unit = a.scale * 1.44269504f;  // of e^x, as 2^x
  for (int64_t i = 0; i < count; ++i) {
    const Pages pages{i * kPagesAtOnce, i + 1 < count ? (i + 1) * kPagesAtOnce : a.pages};
    store_slot_products(a, q, pages, room, products, asking);
    const int64_t num = pages.end - pages.first;
    for (int64_t h = 0; h < a.heads; ++h) parts[h * count + i].top = largest(largest_of(products.at + h * products.ld, num * per_page));
    for (int64_t h = 0; h < a.heads; ++h) {
      Part& part = parts[h * count + i];
      part.sum = sum_part(products.at + h * products.ld, num, per_page, part.top, unit * unit_of(a, q, h), totals + h * ld + pages.first);
      asking.step();
    }
  }
  for (int64_t h = 0; h < a.heads; ++h) {
    Part* const mine = parts + h * count;
    float top = kLowest, sum = 0.0f;
    for (int64_t i = 0; i < count; ++i) top = mine[i].top > top ? mine[i].top : top;
    for (int64_t i = 0; i < count; ++i) {
      mine[i].share = exp2_of((mine[i].top - top) * unit * unit_of(a, q, h));
      sum = fused(mine[i].sum, mine[i].share, sum);
    }
    const float all = Weigh(a.rule.weigh) == Weigh::softmax ? 1.0f / sum : 1.0f;
    for (int64_t i = 0; i < count; ++i) mine[i].share *= all;
  }
  for (int64_t page = 0; page < a.pages; page += kLanes) {
    Vec worth{};
    for (int64_t h = 0; h < a.heads; ++h) worth = fused(load(totals + h * ld + page), parts[h * count + page / kPagesAtOnce].share, worth);
    store_some(a.out + page, worth, a.pages - page);
  }
}

// products [heads][ld] of `count` numbers become e^(scale * (x - the head's largest)), over their sum where it is a softmax; the heads
// together (sum or largest) go to `worth`.
void weigh(const PageScoreArgs& a, const PreparedQueries& q, float* products, int64_t ld, int64_t count, float* worth) {
  const int64_t padded_count = padded(count);
  for (int64_t i = 0; i < padded_count; i += kLanes) store(worth + i, Vec{});
  for (int64_t h = 0; h < a.heads; ++h) {
    float* x = products + h * ld;
    for (int64_t i = count; i < padded_count; ++i) x[i] = -kInf;
    Vec top = splat(-kInf), sum{};
    for (int64_t i = 0; i < padded_count; i += kLanes) top = maximum(load(x + i), top);
    const float most = largest(top), unit_here = a.scale * unit_of(a, q, h);
    for (int64_t i = 0; i < padded_count; i += kLanes) {
      const Vec e = exponential((load(x + i) - splat(most)) * unit_here);
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

void run_page_scores(const PageScoreArgs& a, const PreparedQueries& q, const Soon& soon) {
  const bool by_product = Weigh(a.rule.weigh) == Weigh::product;
  if (by_product && a.rule.kind() != Marks::codes) {
    if (a.rule.kind() == Marks::rows) return best_of_rows<float>(a, q, soon);
    return a.rule.kind() == Marks::halves ? best_of_rows<uint16_t>(a, q, soon) : best_of_registers(a, q, soon);
  }
  if (sums_by_part(a.rule)) {
    const bool at_once = Weigh(a.rule.weigh) == Weigh::softmax && a.pages <= kPagesAtOnce;
    if (!at_once || !sum_one_part(a, q, soon)) sum_by_part(a, q, soon);
    return;
  }
  const int64_t count = products_of(a), ld = count + kPageScorePad;
  float *products = q.room, *worth = products + a.heads * ld, *room = worth + count + kPageScorePad;
  const auto of_rows = [&](auto* rows, int64_t stride) {
    Asking asking(soon, count * ((a.heads + 7) / 8));
    store_row_products(q.queries, a.heads, q.width, rows, stride, count, products, ld, asking);
  };
  switch (a.rule.kind()) {
    case Marks::rows: of_rows((const float*)a.marks, a.rule.stride); break;
    case Marks::halves: of_rows((const uint16_t*)a.marks, a.rule.stride); break;
    case Marks::codes: of_rows((const float*)a.given, q.width); break;
    default:
      Asking asking(soon, a.rule.kind() == Marks::columns ? column_steps(a) : register_steps(a));
      store_slot_products(a, q, {0, a.pages}, room, {products, ld}, asking);
  }
  if (by_product) return best_of_codes(a, products, ld, worth);
  weigh(a, q, products, ld, count, worth);
  if (a.rule.kind() == Marks::codes) sum_codes(worth, a);
  else sum_slots(worth, a.pages, a.rule.per_page, a.out);
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
