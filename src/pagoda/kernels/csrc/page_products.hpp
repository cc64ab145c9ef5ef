// Products of a group's queries with what is noted of pages (page_scores.hpp), for one instruction set: rows, columns, bytes, or keys
// where they lie.
#pragma once

#include "attention_few.hpp"
#include "attention_rows.hpp"
#include "by_heads.hpp"
#include "page_columns.hpp"
#include "page_scores.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

// Asks for what will be read soon, some lines with each of so many steps.
class Asking {
 public:
  Asking(const Soon& soon, int64_t steps) : part_(soon.parts), end_(part_ + soon.count), each_((soon.lines + steps - 1) / (steps > 0 ? steps : 1)) {
    if (part_ != end_) line_ = part_->at;
  }

  void step() {
    const Bytes* part = part_;  // in registers
    const char* line = line_;
    for (int64_t i = 0; i < each_ && part != end_; ++i) {
      ask_for(line);
      line += 64;
      if (line < part->at + part->count) continue;
      if (++part != end_) line = part->at;
    }
    part_ = part, line_ = line;
  }

 private:
  const Bytes *part_, *end_;
  int64_t each_;
  const char* line_ = nullptr;
};

constexpr int64_t kRowsAhead = 2048;  // bytes

// The sums of kCount registers, each in the order of total_of(): four of them in the instructions of one and a half.
template <int kCount>
inline void totals_of(const Vec (&sums)[kCount], float* out) {
  int i = 0;
#if defined(__AVX512F__)
#pragma GCC unroll 16
  for (; i + 2 <= kCount; i += 4) {
    const bool whole = i + 4 <= kCount, third = i + 2 < kCount;
    const __m512 a = sums[i], b = sums[i + 1], c = third ? sums[i + 2] : a, d = whole ? sums[i + 3] : b;
    const __m512 ab = _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xee);
    const __m512 cd = _mm512_shuffle_f32x4(c, d, 0x44) + _mm512_shuffle_f32x4(c, d, 0xee);
    __m512 four = _mm512_shuffle_f32x4(ab, cd, 0x88) + _mm512_shuffle_f32x4(ab, cd, 0xdd);
    four += _mm512_permute_ps(four, 0x4e);
    four += _mm512_permute_ps(four, 0xb1);
    float lanes[kLanes];
    store(lanes, four);
    out[i] = lanes[0], out[i + 1] = lanes[4];
    if (third) out[i + 2] = lanes[8];
    if (whole) out[i + 3] = lanes[12];
  }
#endif
  for (; i < kCount; ++i) out[i] = total_of(sums[i]);
}

// Products of kHeads queries with kRows rows, `stride` apart: a register of a row is read once for all heads. What lies `ahead` bytes
// further on is fetched. out [kRows][kHeads].
template <int kHeads, int kRows, typename Number>
inline void row_products(const float* queries, int64_t width, const Number* row, int64_t stride, int64_t ahead, float* out) {
  Vec sum[kRows * kHeads];
#pragma GCC unroll 16
  for (int i = 0; i < kRows * kHeads; ++i) sum[i] = Vec{};
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) {
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) {
      __builtin_prefetch((const char*)(row + r * stride + d) + ahead);
      const Vec part = load(row + r * stride + d);
#pragma GCC unroll 8
      for (int h = 0; h < kHeads; ++h) sum[r * kHeads + h] = fused(load(queries + h * width + d), part, sum[r * kHeads + h]);
    }
  }
  totals_of(sum, out);
  if (d == width) return;
  for (int r = 0; r < kRows; ++r)
    for (int h = 0; h < kHeads; ++h)
      for (int64_t i = d; i < width; ++i) out[r * kHeads + h] = fused(queries[h * width + i], widen(row[r * stride + i]), out[r * kHeads + h]);
}

// How far ahead of `at` memory is fetched that ends at `end`: not beyond it, where nobody reads.
inline int64_t within(const char* at, const char* end, int64_t ahead) { return end - at > ahead ? ahead : 0; }

// products [heads][ld]: of `count` rows.
template <typename Number>
void store_row_products(const float* queries, int64_t heads, int64_t width, const Number* rows, int64_t stride, int64_t count,
                        float* products, int64_t ld, Asking& asking) {
  by_heads(heads, [&](int64_t head, auto n) {
    float found[n.value];
    const char* const end = (const char*)(rows + count * stride);
    for (int64_t i = 0; i < count; ++i) {
      const Number* const row = rows + i * stride;
      row_products<n.value, 1>(queries + head * width, width, row, stride, within((const char*)row, end, kRowsAhead), found);
      for (int h = 0; h < n.value; ++h) products[(head + h) * ld + i] = found[h];
      asking.step();
    }
  });
}

constexpr int64_t kBytesAhead = 4096;  // of pages of bytes, which lie one behind the other

// Some heads' queries for bytes (PreparedQueries), from the `head`th on.
struct ByteQueries {
  const int8_t* codes;
  const int32_t* starts;  // -128 times the sum of the codes
  const float* units;
  int64_t fours, apart;  // bytes from one four to the next

  ByteQueries(const PageScoreArgs& a, const PreparedQueries& q, int64_t head)
      : codes(q.codes + 4 * head), starts(q.starts + head), units(q.units + head), fours(q.fours()), apart(4 * a.heads) {}
};

// total[head] = queries . channels of a register of slots, in units of the head and of the slot's scale: four channels at a time, `plane`
// bytes from one four to the next, summed without a loss. What lies `ahead` bytes further on is fetched.
template <int kHeads>
inline void byte_totals(const ByteQueries& q, const uint8_t* words, int64_t plane, int64_t slots, int64_t ahead, IntVec (&total)[kHeads]) {
  UintVec four{};
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) total[h] = IntVec{} + q.starts[h];
  const int8_t* codes = q.codes;
  for (int64_t w = 0; w < q.fours; ++w, words += plane, codes += q.apart) {
    if (ahead) __builtin_prefetch(words + ahead);
    if (slots == kLanes) memcpy(&four, words, sizeof four);
    else memcpy(&four, words, 4 * slots);
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      const int8_t* code = codes + 4 * h;
#if defined(__AVX512VNNI__)
      int32_t word;
      memcpy(&word, code, 4);
      total[h] = (IntVec)_mm512_dpbusd_epi32((__m512i)total[h], (__m512i)four, _mm512_set1_epi32(word));
#else
      total[h] += (IntVec)(four & 255u) * int32_t{code[0]} + (IntVec)(four >> 8 & 255u) * int32_t{code[1]} +
                  (IntVec)(four >> 16 & 255u) * int32_t{code[2]} + (IntVec)(four >> 24) * int32_t{code[3]};
#endif
    }
  }
}

inline Vec floats_of(IntVec x) { return __builtin_convertvector(x, Vec); }

// Pages that are scored together.
struct Pages {
  int64_t first, end;
};

// Calls use(head, page, first slot, slots, totals [kHeads], units [kHeads], scales) for all slots of the pages, a register of slots at a time:
// marks of bytes, as byte_totals() has them.
template <typename Use>
void each_register(const PageScoreArgs& a, const PreparedQueries& q, Pages pages, Asking& asking, Use use) {
  const int64_t per_page = a.rule.per_page, apart = a.rule.mark_bytes();
  const char* const end = a.marks + a.pages * apart;
  by_heads(a.heads, [&](int64_t head, auto n) {
    const ByteQueries in_bytes(a, q, head);
    for (int64_t page = pages.first; page < pages.end; ++page) {
      const char* marks = a.marks + page * apart;
      for (int64_t slot = 0; slot < per_page; slot += kLanes) {
        const int64_t slots = per_page - slot < kLanes ? per_page - slot : kLanes;
        const char* at = marks + slot * 4;
        IntVec totals[n.value];
        byte_totals(in_bytes, (const uint8_t*)at, 4 * per_page, slots, within(at, end, kBytesAhead), totals);
        use(head, page, slot, slots, totals, in_bytes.units, scales_at((const uint8_t*)marks + a.rule.channels() * per_page + slot, slots));
        asking.step();
      }
    }
  });
}

// Steps of Asking that a score takes by each_register().
inline int64_t register_steps(const PageScoreArgs& a) { return a.pages * ((a.rule.per_page + kLanes - 1) / kLanes) * ((a.heads + 7) / 8); }

// Where the products of pages with one head go: `first` page's first slot, from one head to the next.
struct Products {
  float* at;
  int64_t ld;
};

void store_register_products(const PageScoreArgs& a, const PreparedQueries& q, Pages pages, Products products, Asking& asking) {
  each_register(a, q, pages, asking, [&](int64_t head, int64_t page, int64_t slot, int64_t, auto& totals, auto* units, Vec scales) {
    float* to = products.at + head * products.ld + (page - pages.first) * a.rule.per_page + slot;
    // Lanes behind the page's slots are the next page's.
    for (const IntVec& one : totals) store(to, floats_of(one) * *units++ * scales), to += products.ld;
  });
}

// What a head's products are worth.
inline float unit_of(const PageScoreArgs& a, const PreparedQueries& q, int64_t head) {
  return a.rule.kind() == Marks::columns ? q.units[head] : 1.0f;
}

// Of slots that were brought together, in units of each head; whole registers are written.
template <int kHeads>
void store_together(const ByteQueries& q, const char* together, int64_t count, float* to, int64_t ld) {
  for (int64_t i = 0; i < count; i += kLanes) {
    IntVec totals[kHeads];
    byte_totals(q, (const uint8_t*)together + 4 * i, kFourTogether, kLanes, 0, totals);
    const Vec scales = load((const float*)(together + q.fours * kFourTogether) + i);
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) store(to + h * ld + i, floats_of(totals[h]) * scales);
  }
}

// Steps of Asking in it.
inline int64_t column_steps(const PageScoreArgs& a) { return a.pages * a.rule.per_page / kTogether + 1; }

// `room`: page_score_room() has it.
void store_column_products(const PageScoreArgs& a, const PreparedQueries& q, Pages pages, float* room, Products products, Asking& asking) {
  const int64_t first = pages.first * a.rule.per_page, end = pages.end * a.rule.per_page, all = a.pages * a.rule.per_page, fours = q.fours();
  const char** const columns = (const char**)line_from(room);
  char* const together = (char*)(columns + 4 * fours);
  const char* const rows[2] = {column_of_scales(a), column_of_scales(a) + column_bytes(a)};
  find_columns(a, q, columns);
  if (!q.asked && first == 0) fetch_columns(columns, fours, rows, all / 2);
  for (int64_t at = first; at < end; at += kTogether) {
    const int64_t count = end - at < kTogether ? end - at : kTogether;
    bring_together(columns, fours, rows, at, count, at / 2 + kColumnsAhead < all / 2 ? kColumnsAhead : 0, column_group(a.rule.per_page), together);
    float* const to = products.at + at - first;
    by_heads(a.heads, [&](int64_t head, auto n) { store_together<n.value>({a, q, head}, together, count, to + head * products.ld, products.ld); });
    asking.step();
  }
}

const char* keys_of(const PageScoreArgs& a, int64_t page) {
  return a.storage + (a.ids[page] + a.offset) * a.shape.page_bytes + a.shape.k.at;
}

#if PAGODA_DPBF16

constexpr int64_t kKeysAhead = 4;  // pages

// Pages of bfloat16 and queries that are: as attention multiplies them.
void store_pair_products(const PageScoreArgs& a, const PreparedQueries& q, Pages pages, float* room, Products products) {
  const int64_t words = a.dim / 2, per_page = a.rule.per_page;
  uint16_t* packed = (uint16_t*)room;
  for (int64_t i = 0; i < a.heads * a.dim; ++i) narrow(q.queries[i], packed + i);
  for (int64_t page = pages.first; page < pages.end; ++page) {
    const char *keys = keys_of(a, page), *ahead = keys_of(a, page + kKeysAhead < a.pages ? page + kKeysAhead : a.pages - 1);
    Lines soon{ahead, ahead + per_page * a.shape.k.bytes - 64};
    for (int64_t slot = 0; slot < per_page; slot += 16) {
      const char* first = keys + slot * a.shape.k.bytes;
      by_heads(a.heads, [&](int64_t head, auto n) {
        few_scores<n.value>(room + head * words, words, first, first + kEight * a.shape.k.bytes, a.shape.k.bytes,
                            products.at + head * products.ld + (page - pages.first) * per_page + slot, products.ld, soon);
      });
      soon.at = soon.at + 64 * words < soon.last ? soon.at + 64 * words : soon.last;
    }
  }
}

#endif

// One page after the other, as numbers.
void store_key_products(const PageScoreArgs& a, const PreparedQueries& q, Pages pages, float* room, Products products) {
  const int64_t per_page = a.rule.per_page;
#if PAGODA_DPBF16
  if (a.shape.store == Store::bf16 && a.dim % 8 == 0 && per_page % 16 == 0 && q.are_bf16) return store_pair_products(a, q, pages, room, products);
#endif
  for (int64_t page = pages.first; page < pages.end; ++page) {
    const char *keys = keys_of(a, page), *scales = keys - a.shape.k.at + a.shape.k_scales.at;
    for (int64_t slot = 0; slot < per_page; ++slot)
      read_row(a.shape.store, keys + slot * a.shape.k.bytes, scales + slot * a.shape.k_scales.bytes, a.dim, room + slot * a.dim);
    float* to = products.at + (page - pages.first) * per_page;
    Asking nothing({}, 0);
    store_row_products(q.queries, a.heads, a.dim, room, a.dim, per_page, to, products.ld, nothing);
  }
}

// The products of all heads with every slot of the pages.
void store_slot_products(const PageScoreArgs& a, const PreparedQueries& q, Pages pages, float* room, Products products, Asking& asking) {
  switch (a.rule.kind()) {
    case Marks::keys: return store_key_products(a, q, pages, room, products);
    case Marks::columns: return store_column_products(a, q, pages, room, products, asking);
    default: return store_register_products(a, q, pages, products, asking);
  }
}

}  // namespace
}  // namespace pagoda
