// Where a block's slots lie in the pages of one row of a table.
#pragma once

#include "attention.hpp"
#include "attention_ahead.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

constexpr int kBlock = 128;      // slots attended at a time
// Those beside which a row's maximum moves at once. A weight is rounded beside it (fused_less()), so few rows and many move theirs at the same slots.
constexpr int kSpan = PAGODA_AMX ? 64 : kBlock;
constexpr int64_t kEight = 8;    // slots that lie at one distance from one another, wherever pages are multiples of it

inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Rows of slots, eight at a time: row i of an eight begins at[eight] + i * stride.
struct Eights {
  const char* at[kBlock / kEight];
  int64_t stride;
};

struct Slots {
  int count = 0;
  int num_pages = 0;
  const char* pages[kBlock];
  // Slot by slot:
  const char* k[kBlock];
  const char* v[kBlock];
  const char* k_scales[kBlock];
  const char* v_scales[kBlock];
  // Or by eights, for products that read pages where they lie:
  bool by_eights = false;  // these are what was found
  Eights k8, v8;
  int first_inside = 0;  // the first slot's place in its page
  // Of pages that were encoded whole: so many slots are, from slot `first` of the row on. The others have rows.
  int encoded = 0;
  int64_t first = 0;

  // Slots behind the last, up to a full register: copies of the last (their probability is 0).
  void pad() {
    for (int64_t i = count; i < padded(count); ++i) k[i] = k[count - 1], v[i] = v[count - 1];
  }

  static int64_t tail_bytes(const PageShape& p) { return 2 * kEight * (p.k.bytes + p.v.bytes); }

  // The rows of the last eight and, up to a full register, one more that are no slots become zeros, in `space`: pages hold
  // anything there.
  void pad_eights(const PageShape& p, char* space) {
    const int64_t eights = (count + kEight - 1) / kEight, rest = count % kEight;
    if (rest == 0 && eights % 2 == 0) return;
    memset(space, 0, tail_bytes(p));
    const auto pad = [&](Eights& rows, int64_t bytes) {
      if (rest) {
        memcpy(space, rows.at[eights - 1], rest * bytes);
        rows.at[eights - 1] = space;
      }
      if (eights % 2) rows.at[eights] = space + kEight * bytes;
      space += 2 * kEight * bytes;
    };
    pad(k8, p.k.bytes);
    if (p.v.bytes) pad(v8, p.v.bytes);
    else v8 = k8;
  }
};

struct PageRow {
  const AttentionArgs& a;
  int64_t seq, head;
  const int32_t* ids;
  int64_t offset;

  PageRow(const AttentionArgs& args, int64_t seq_, int64_t head_)
      : a(args), seq(seq_), head(head_), ids(args.rows + args.row_of[args.pair(seq, head)] * args.max_pages),
        offset(args.offset[args.pair(seq, head)]) {}

  // Calls each(page, first slot in it, first slot of begin..end less begin, slots).
  template <typename Each>
  void walk(int64_t begin, int64_t end, Slots& out, Each each) const {
    const PageShape& p = a.shape;
    out.count = int(end - begin), out.num_pages = 0;
    const int32_t* id = ids + begin / p.page_size;
    for (int64_t slot = begin, inside = begin % p.page_size; slot < end; inside = 0) {
      const int64_t here = p.page_size - inside < end - slot ? p.page_size - inside : end - slot;
      const char* page = a.pages + (*id++ + offset) * p.page_bytes;
      out.pages[out.num_pages++] = page;
      each(page, inside, slot - begin, here);
      slot += here;
    }
  }

  void find(int64_t begin, int64_t end, Slots& out) const {
    const PageShape& p = a.shape;
    if (a.coded) return find_coded(begin, end, out);
    walk(begin, end, out, [&](const char* page, int64_t inside, int64_t i, int64_t here) {
      const auto plane = [&](const char** to, const Plane& plane) {
        const char* from = page + plane.at + inside * plane.bytes;
        for (int64_t j = 0; j < here; ++j) to[i + j] = from + j * plane.bytes;
      };
      plane(out.k, p.k);
      plane(out.v, p.v.bytes ? p.v : p.k);
      if (p.k_scales.bytes) {
        plane(out.k_scales, p.k_scales);
        plane(out.v_scales, p.v.bytes ? p.v_scales : p.k_scales);
      }
    });
  }

  // Encoded pages, which have no rows, and raw slots behind them.
  void find_coded(int64_t begin, int64_t end, Slots& out) const {
    const RawSlots& raw = a.coded->raw[seq];
    const int64_t border = raw.start < begin ? begin : raw.start < end ? raw.start : end;
    walk(begin, border, out, [](auto...) {});
    out.count = int(end - begin), out.encoded = int(border - begin), out.first = begin;
    const int64_t k_bytes = row_bytes(a.coded->raw_store, a.shape.k_dim), v_bytes = row_bytes(a.coded->raw_store, a.shape.v_dim);
    for (int64_t i = out.encoded, at = head * raw.room + begin + i - raw.start; i < out.count; ++i, ++at)
      out.k[i] = raw.k + at * k_bytes, out.v[i] = raw.v + at * v_bytes;
    if (out.encoded == out.count) return;
    // Raw slots are asked for ahead as if they were pages, too: they are a quarter of what 400 slots of two bits take to read.
    name_lines(out.k[out.encoded], (out.count - out.encoded) * k_bytes, out);
    name_lines(out.v[out.encoded], (out.count - out.encoded) * v_bytes, out);
  }

  // Names bytes from `at` on as pages to be read: the last few may be others'.
  void name_lines(const char* at, int64_t bytes, Slots& out) const {
    for (const char* const end = at + bytes; at < end && out.num_pages < kBlock; at += a.shape.page_bytes) out.pages[out.num_pages++] = at;
  }

  // The page that another head has in the place of number `number` of this one.
  struct Place {
    const PageRow& row;
    int64_t number;
    static const uint8_t* find(const void* place, int64_t head) {
      const Place& p = *static_cast<const Place*>(place);
      const PageRow other(p.row.a, p.row.seq, head);
      return (const uint8_t*)other.a.pages + (other.ids[p.number] + other.offset) * other.a.shape.page_bytes;
    }
  };

  // The same by eights: begin and the page size are multiples of eight.
  void find_eights(int64_t begin, int64_t end, Slots& out) const {
    const PageShape& p = a.shape;
    const Plane& values = p.v.bytes ? p.v : p.k;
    const int64_t k_step = kEight * p.k.bytes, v_step = kEight * values.bytes;
    out.k8.stride = p.k.bytes, out.v8.stride = values.bytes, out.first_inside = int(begin % p.page_size);
    if (begin % p.page_size == 0 && (end - begin) % p.page_size == 0) {  // nearly always: whole pages
      out.count = int(end - begin), out.num_pages = int((end - begin) / p.page_size);
      const char **k_to = out.k8.at, **v_to = out.v8.at, *const storage = a.pages + offset * p.page_bytes;
      const int32_t* const id = ids + begin / p.page_size;
      for (int n = 0; n < out.num_pages; ++n) {
        const char* const page = out.pages[n] = storage + id[n] * p.page_bytes;
        for (int64_t e = 0; e < p.page_size; e += kEight)
          *k_to++ = page + p.k.at + e * p.k.bytes, *v_to++ = page + values.at + e * values.bytes;
      }
      return;
    }
    walk(begin, end, out, [&](const char* page, int64_t inside, int64_t i, int64_t here) {
      const char *k = page + p.k.at + inside * p.k.bytes, *v = page + values.at + inside * values.bytes;
      const char **k_to = out.k8.at + i / kEight, **v_to = out.v8.at + i / kEight, **const last = k_to + (here + kEight - 1) / kEight;
#pragma GCC unroll 2
      for (; k_to != last; k += k_step, v += v_step) *k_to++ = k, *v_to++ = v;
    });
  }

  // Calls each(page, first slot in it, first slot in the block, slots) for what find_eights found.
  template <typename Each>
  void each_page(const Slots& found, Each each) const {
    int64_t inside = found.first_inside;
    for (int64_t at = 0, n = 0; at < found.count; ++n, inside = 0) {
      const int64_t here = a.shape.page_size - inside < found.count - at ? a.shape.page_size - inside : found.count - at;
      each(found.pages[n], inside, at, here);
      at += here;
    }
  }
};

}  // namespace
}  // namespace pagoda
