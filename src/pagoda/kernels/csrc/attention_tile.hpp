// A tile of rows over one range of slots, block by block: find the slots, fetch the next ones, multiply, and write what comes out.
#pragma once

#include "attention_byte_many.hpp"
#include "attention_byte_tiles.hpp"
#include "attention_decode.hpp"
#include "attention_many.hpp"
#include "attention_results.hpp"
#include "attention_tiled.hpp"
#include "attention_tiled_few.hpp"
#include "attention_tiled_parts.hpp"

namespace pagoda {
namespace {

template <typename Math>
struct Tile {
  const AttentionArgs& a;
  const Span* spans;
  const AttentionItem& item;
  const AttentionScratch& out;
  TileRows<Math> t;

  Tile(const AttentionArgs& args, const Span* all, const AttentionItem& it, const AttentionScratch& where)
      : a(args), spans(all), item(it), out(where), t(args, all, it) {}

  // How slots meet the rows: where they lie (few rows), or packed.
  bool few() const {
#if PAGODA_AMX
    constexpr int64_t kTile = 2 * kEight;  // slots
    return t.rows <= kRowsTogether && a.shape.k_dim % (2 * kTileWords) == 0 &&
           (!Math::native(a.shape) || (a.shape.page_size % kTile == 0 && item.slot_begin % kTile == 0));
#elif PAGODA_DPBF16
    return Math::kPerWord == 2 && t.rows <= kFewRows && t.k_words % 4 == 0 && a.v_dim % 16 == 0 &&
           (!Math::native(a.shape) || (a.shape.page_size % kEight == 0 && item.slot_begin % kEight == 0));
#else
    return false;
#endif
  }
  // Many rows, whose products read keys where they lie and values by sixteens: then no slot of whole ones needs an address of its own.
  bool by_sixteens() const {
#if PAGODA_AMX
    return !t.bytes && !few() && Math::native(a.shape) && a.shape.k_dim % (2 * kTileWords) == 0 && a.shape.page_size % kLanes == 0 &&
           item.slot_begin % kLanes == 0 && (item.slot_end - item.slot_begin) % (2 * kLanes) == 0;
#else
    return false;
#endif
  }
  bool in_place() const { return t.bytes || (few() && Math::native(a.shape)); }

  void work(Block<Math>& block, const PageRow& pages, Slots& slots, int64_t begin, const Slots& next, PartEnd end) {
    Ahead ahead{next.pages, next.num_pages, a.shape};
    if (in_place()) block.open_eights(pages, slots);
    else block.widen(pages, slots, true, ahead);
    multiply(block, slots, begin, ahead, end);
    ahead.lines(ahead.left);  // what found no place between the products
  }

  void multiply(Block<Math>& block, Slots& slots, int64_t begin, Ahead& ahead, [[maybe_unused]] PartEnd end) {
#if PAGODA_AMX
    if (t.across) return attend_many_bytes(t, block, slots, begin, ahead, end);
    if (t.bytes) return attend_byte_tiles(t, block, slots, begin, ahead);
    if (few()) return attend_few_tiles(t, block, slots, begin, ahead);
    return attend_tiles(t, block, slots, begin, ahead, end);
#elif PAGODA_DPBF16
    if (t.bytes) return attend_bytes(t, block, slots, begin, ahead);
    if (few()) return attend_few(t, block, slots, begin, ahead);
#endif
    block.pack(slots, true, ahead);
    attend_many(t, block, begin, ahead, end);
  }

  void copy(const float* from, float* to) const {
    int64_t c = 0;
    for (; c + kLanes <= a.v_dim; c += kLanes) store(to + c, load(from + c));
    for (; c < a.v_dim; ++c) to[c] = from[c];
  }

  Parts parts_of_span(const Span& span) const { return parts_of(a, out.partials + span.partial, span.q_end - span.q_begin, span.num_parts); }

  void write_partials(int64_t part, const float* sums_of_rows, const float* tops_of_rows, const float* totals_of_rows) const {
    int64_t row = 0;
    for (int s = item.span_begin; s < item.span_end; ++s) {
      const Parts parts = parts_of_span(spans[s]);
      float *const sums = parts.sums(part), *const tops = parts.tops(part), *const totals = parts.totals(part);
      for (int64_t r = 0; r < parts.rows; ++r, ++row) {
        copy(sums_of_rows + row * t.v_stride, sums + r * a.v_dim);
        tops[r] = tops_of_rows[row], totals[r] = totals_of_rows ? totals_of_rows[row] : t.total(row);
      }
    }
  }

  // What slots from `begin` to `end` of the item are written to: part `part`, and behind it the empty ones that are in it.
  struct Target {
    int64_t part, begin, end;
    int64_t end_part() const { return part + (end - 1) / kPartSlots - begin / kPartSlots + 1; }
  };
  Target target_of(int64_t part, int64_t begin) const {
    const int64_t left = t.kKeeps && part % kSumParts == 0 ? kSumParts : 1, end = (begin / kPartSlots + left) * kPartSlots;
    return {part, begin, end < item.slot_end ? end : int64_t{item.slot_end}};
  }

  // Asks for the lines that a target is written to: beside slots at..end the same share of the rows. Weights have driven them out of the caches, and
  // 128 rows waited for theirs at an item's end (19 us of 140, of which writing is 6).
  void ask_for_partials(const Target& target, int64_t at, int64_t end) const {
    const auto ask = [](const float* from, const float* to) {
      for (const char* line = (const char*)from; line < (const char*)to; line += 64) ask_for(line);
    };
    const int64_t num_spans = item.span_end - item.span_begin, slots = target.end - target.begin;
    const int64_t last = num_spans * (end - target.begin) / slots;
    for (int64_t s = num_spans * (at - target.begin) / slots; s < last; ++s) {
      const Parts parts = parts_of_span(spans[item.span_begin + s]);
      ask(parts.tops(target.part), parts.tops(target.end_part())), ask(parts.totals(target.part), parts.totals(target.end_part()));
      ask(parts.sums(target.part), parts.sums(target.part + 1));
    }
  }

  // Parts `begin` to `end` are in another.
  void write_empty_partials(int64_t begin, int64_t end) const {
    for (int s = item.span_begin; s < item.span_end; ++s) {
      const Parts parts = parts_of_span(spans[s]);
      float *const tops = parts.tops(begin), *const totals = parts.totals(begin);
      for (int64_t i = 0; i < (end - begin) * parts.rows; ++i) tops[i] = -kInf, totals[i] = 0.0f;
    }
  }

  void write_results() const {
    t.each_row([&](int row, const Span& span, int query, int64_t q_head) {
      finish_row(a, out, a.q_starts[span.seq] + query, q_head, t.sums + row * t.v_stride, t.tops[row], t.total(row));
    });
  }

  // Sums, maxima and denominators by rows.
  void order_sums(bool kept) {
#if PAGODA_AMX
    if (t.bytes && !t.across) return;
    if (few() && !t.across) t.order_columns();
    else turn_sums(t, kept);
#else
    (void)kept;
#endif
  }

  // Whether many rows' parts are kept beside the products of their last block (attention_many.hpp, attention_tiled_parts.hpp), by AMX by columns.
  bool kept_beside() const { return t.across || (!t.bytes && !few()); }
  bool by_columns() const { return PAGODA_AMX && kept_beside(); }

  // How part `part` of its rows ends: kept with those before it where the item has the first of the sum, and it is not the only one.
  PartEnd part_end(int64_t part, bool last) const {
    const int64_t first = part - part % kSumParts;
    if (!t.kKeeps || first < spans[item.span_begin].part || (part == first && last)) return PartEnd::none;
    return part == first ? PartEnd::kept_first : PartEnd::kept;
  }

  void end_part(int64_t part, bool last, PartEnd end) {
    const bool kept = end != PartEnd::none;
    if (kept && !kept_beside()) order_sums(false), t.keep(0, t.rows, end == PartEnd::kept_first);
    if (kept && !last && (part + 1) % kSumParts != 0) return;
    const int64_t first = kept ? part - part % kSumParts : part;
    if (!kept || by_columns()) {
      order_sums(kept);
      write_partials(first, t.sums, t.tops, nullptr);
    } else {
      write_partials(first, t.before.sums, t.before.tops, t.before.totals);
    }
    write_empty_partials(first + 1, part + 1);
  }

  static int64_t block_end(const AttentionItem& it, int64_t from) {
    const int64_t end = (from / kBlock + 1) * kBlock;
    return end < it.slot_end ? end : int64_t{it.slot_end};
  }

  void find(const PageRow& pages, int64_t at, Slots& slots) const {
    slots.by_eights = in_place() || by_sixteens();
    if (slots.by_eights) pages.find_eights(at, block_end(item, at), slots);
    else pages.find(at, block_end(item, at), slots);
  }

  // Where the slots lie that are attended after those up to `at`: of this item, else the first of `soon`.
  void find_next(const PageRow& pages, int64_t at, const AttentionItem* soon, Slots& next) const {
    next.num_pages = 0;
    const bool others = soon != nullptr && soon->slot_begin < soon->slot_end;
    if (at < item.slot_end) return find(pages, at, next);
    if (!others) return;
    const PageRow row(a, spans[soon->span_begin].seq, soon->head);
    const int64_t end = block_end(*soon, soon->slot_begin);
    if (a.coded) row.find_coded(soon->slot_begin, end, next);
    else row.walk(soon->slot_begin, end, next, [](auto...) {});
  }

  // Asks for a block whose slots nobody has fetched, all at once: there are no products yet that could run beside.
  void fetch(const Slots& first) const {
    Ahead ahead{first.pages, first.num_pages, a.shape};
    ahead.lines(ahead.left);
  }

  void run(const AttentionItem* soon, bool cold) {
    const PageRow pages(a, spans[item.span_begin].seq, item.head);
    Block<Math> block(a, t.block_space);
    Slots slots[2];
    if (item.slot_begin < item.slot_end) {
      find(pages, item.slot_begin, slots[0]);
      if (cold) fetch(slots[0]);
    }
    t.prepare();
#if PAGODA_AMX
    if (t.find_across()) turn_many_queries(t);
    else if (t.bytes) turn_byte_queries(t);
    else turn_queries(t);
#endif
    const bool parts = spans[item.span_begin].partial >= 0;
    int64_t at = item.slot_begin, part = spans[item.span_begin].part;
    const bool zeros = !t.across && (t.bytes || few() || at == item.slot_end);  // slots that are multiplied where they lie are added to sums
    t.restart(zeros);
    const bool common = parts && item.span_end - item.span_begin > 1;
    Target target{part, at, at};
    for (int turn = 0; at < item.slot_end; turn ^= 1) {
      const int64_t end = block_end(item, at);
      const bool last = end == item.slot_end, ends = parts && (last || end % kPartSlots == 0);
      const PartEnd kind = ends ? part_end(part, last) : PartEnd::none;
      find_next(pages, end, soon, slots[turn ^ 1]);
      if (common && at == target.end) target = target_of(part, at);
      if (common) ask_for_partials(target, at, end);
      work(block, pages, slots[turn], at, slots[turn ^ 1], kind);
      at = end;
      if (ends) {
        end_part(part++, last, kind);
        t.restart(zeros);
      }
    }
    if (parts) return;
    if (item.slot_begin < item.slot_end) order_sums(false);
    write_results();
  }
};

}  // namespace
}  // namespace pagoda
