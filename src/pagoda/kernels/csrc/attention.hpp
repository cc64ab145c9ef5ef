// Paged attention over head pages, decode and prefill chunks alike. The contract is ops/attention.py's; see there.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "dtype.hpp"
#include "isa.hpp"
#include "page_numbers.hpp"
#include "page_shape.hpp"

namespace pagoda {

// Where one sequence's probability sums are added to.
struct SumTarget {
  float* sums = nullptr;    // [Hkv, stride]; null: nobody asks for this sequence's
  float* counts = nullptr;  // [Hkv, count_stride]: rows that gave a slot at least the mean of what they give; or null
  int64_t stride = 0, count_stride = 0;
  int64_t last = 0;  // w > 0: only the last w queries of its chunk

  int64_t room() const { return counts ? std::min(stride, count_stride) : stride; }  // of slots
};

// How often the slots of one sequence count in the softmax, as logarithms that are added to their scores: [Hkv, width]. Slots behind
// those count once.
struct SlotWeights {
  const float* logs = nullptr;  // null: all of them count once
  int64_t width = 0;
};

// The newest slots of a sequence, which lie as numbers beside its encoded pages: of one layer, [head][room][dim] each.
struct RawSlots {
  const char *k = nullptr, *v = nullptr;
  int64_t start = 0, room = 0;  // the first slot of them, a multiple of the page size; how many there is room for
};

// Pages that were encoded whole (Store::pages). They are decoded by whoever multiplies them, a block of slots at a time.
struct CodedPages {
  PageSide k, v;
  Store raw_store = Store::f32;   // of the raw slots' numbers
  const RawSlots* raw = nullptr;  // [S]
};

// Of a kv-head: up to so many rows of a chunk are cut into parts; wider chunks are tiled over their queries. Their bits differ (and int8 and
// int4 pages meet products of bytes in the former alone), so whoever computes a token twice and wants the same says which it is: are_wide.
constexpr int64_t kNarrowRows = 64;

struct AttentionArgs {
  // Queries [T, Hq, k_dim], strides in elements, last dimension contiguous; result [T, Hq, v_dim] contiguous.
  const void* q = nullptr;
  int64_t q_token_stride = 0, q_head_stride = 0;
  void* out = nullptr;
  Dtype dtype = Dtype::f32;  // of queries and result
  // Storage of num_pages pages, one after the other.
  const char* pages = nullptr;
  int64_t num_pages = 0;
  PageShape shape;
  const CodedPages* coded = nullptr;  // of Store::pages; else null
  int64_t v_dim = 0;  // columns of the result
  // The layer's table, all int32.
  const int32_t* rows = nullptr;  // [R, max_pages]
  int64_t num_rows = 0, max_pages = 0;
  const int32_t* row_of = nullptr;    // [S, Hkv]
  const int32_t* offset = nullptr;    // [S, Hkv]
  const int32_t* kv_lens = nullptr;   // [S, Hkv]
  const int32_t* q_starts = nullptr;  // [S + 1]
  // [S + 1] of the whole chunks, where q_starts has only some of their queries: each chunk's last ones. Or null. How a query is
  // computed depends on its whole chunk, so its bits do not depend on which others are asked for.
  const int32_t* chunk_starts = nullptr;
  // [S] which chunks are wide, however long they are; those that are not are computed as one query by itself is. Null: by their lengths.
  const uint8_t* are_wide = nullptr;
  int64_t num_seqs = 0, num_q_heads = 0, num_kv_heads = 0, num_tokens = 0;
  // Options, as in the Python signature.
  float scale = 1.0f, soft_cap = 0.0f;
  int64_t window = 0;
  const float* sinks = nullptr;   // [Hq]
  const float* slopes = nullptr;  // [Hq]
  const SumTarget* sum_targets = nullptr;  // [S], or null
  const SlotWeights* weights = nullptr;    // [S], or null
  bool share_prefixes = true;     // read pages that several sequences begin with once for all of them

  bool byte_products = true;  // int8 and int4 pages, few bfloat16 queries: products of bytes where the machine has them (loses a little)

  int64_t group() const { return num_q_heads / num_kv_heads; }
  int64_t num_queries(int64_t seq) const { return q_starts[seq + 1] - q_starts[seq]; }
  int64_t num_in_chunk(int64_t seq) const {
    return chunk_starts ? chunk_starts[seq + 1] - chunk_starts[seq] : num_queries(seq);
  }
  bool wide(int64_t seq) const { return are_wide ? are_wide[seq] : num_in_chunk(seq) > 1 && num_in_chunk(seq) * group() > kNarrowRows; }
  // Queries of a chunk that is not wide which are computed together, and whether those are all.
  int64_t narrow_queries() const;
  bool at_once(int64_t seq) const { return !wide(seq) && num_queries(seq) <= narrow_queries(); }
  bool wide_by_floats = false;  // set by the driver: wide chunks are multiplied as floats
  // Pairs of bfloat16 are multiplied: queries are, and so are the pages' numbers (codes without loss; decoded int4 is rounded).
  bool pairs() const { return dtype == Dtype::bf16 && shape.store != Store::f32 && shape.store != Store::f16; }
  bool pairs(int64_t seq) const { return pairs() && !(wide_by_floats && wide(seq)); }
  bool summed(int64_t seq) const { return sum_targets && sum_targets[seq].sums; }
  bool weighted(int64_t seq) const { return weights && weights[seq].logs && weights[seq].width > 0; }
  int64_t pair(int64_t seq, int64_t head) const { return seq * num_kv_heads + head; }
};

class AttentionMemo;  // attention_memo.hpp

// Whether the environment (PAGODA_KV_PRODUCTS, read once) leaves products of int8 and int4 KV to bytes. Throws
// std::invalid_argument for a value that is none.
bool byte_products_allowed();

// Runs on up to num_threads threads with the instruction set `isa` ("" = the best here). The result does not depend on the
// number of threads, nor a sequence's on its batch mates, nor on prefixes being shared: bit for bit. Throws std::out_of_range
// for a bad page id or row, std::invalid_argument for an unknown or unusable isa. Calls that share a memo find what lies at the same
// addresses unchanged.
void paged_attention(const AttentionArgs& args, int num_threads, const std::string& isa, AttentionMemo* memo = nullptr);

// ---- the plan (attention_plan.cpp): which rows meet which slots ----------------------------------------------------------

// Slots are attended in parts that begin at multiples of kPartSlots. The parts of a row are added up in their order, kSumParts at a time, and then
// these sums are. So a row's result depends on its own slots alone, however parts are grouped into items, and two sequences that begin with
// the same pages can have their parts computed together; and an item that has the first parts of such a sum adds them up itself (Tile::end_part).
constexpr int64_t kPartSlots = 256, kSumParts = 8;

// One where a window is longer than a sum: which parts are added up first is counted from the first that any of the queries sees.
inline int64_t AttentionArgs::narrow_queries() const {
  if (window + kNarrowRows + kPartSlots > kSumParts * kPartSlots) return 1;
  return std::max<int64_t>(1, kNarrowRows / group());
}

// What one item takes of many queries, by the second-level cache (caches.hpp): few enough that queries and sums stay there beside a
// block of K and V and the next one's pages, enough that K and V are packed and read for many.
struct AttentionTiles {
  int64_t rows;   // queries x query heads of the group; half of them where there are few
  int64_t words;  // 32 bits each, of their queries and sums

  explicit AttentionTiles(int64_t cache_bytes);
  int64_t rows_of(int64_t wanted, int64_t columns) const;  // at most `wanted`, with so many columns of K and V together
};

// Queries q_begin..q_end of one sequence, with all query heads of a group.
struct Span {
  int32_t seq, q_begin, q_end;
  int64_t partial;  // where the parts of its merge lie (in floats), or -1: it is the whole, write the result itself
  int32_t merge;    // of the plan's, to which its parts belong; or -1
  int32_t part, num_parts;  // of the merge: the first one in this item, all of them
};

// The spans of one kv-head, over slots slot_begin..slot_end, which lie in the same pages for all of them.
struct AttentionItem {
  int32_t head;
  int32_t span_begin, span_end;
  int32_t slot_begin, slot_end;
};

// `count` parts, which lie as Parts from float `first` on, make the result of queries q_begin..q_end of one (sequence, kv-head).
struct Merge {
  int32_t seq, q_begin, q_end, head;
  int64_t first, count;
};

// Probabilities of one (sequence, kv-head) over slots slot_begin..slot_end, summed over its last queries.
struct SumItem {
  int32_t seq, head, slot_begin, slot_end;
};

struct AttentionPlan {
  std::vector<Span> spans;
  std::vector<AttentionItem> items;
  std::vector<Merge> merges;
  std::vector<SumItem> sums;
  // [num_threads + 1] first items of the threads' stretches (stretches.hpp), which are equal in work; empty where chunks are tiled
  // over their queries: those are taken in turn, the longest first.
  std::vector<int32_t> stretches;
  int64_t num_partial_floats = 0;
  int64_t work = 0;  // in units of one slot for one row
  int64_t first_page = INT32_MAX, last_page = 0;  // that are read, offsets included; first > last: none

  void clear() {
    spans.clear(), items.clear(), merges.clear(), sums.clear(), stretches.clear();
    num_partial_floats = work = last_page = 0, first_page = INT32_MAX;
  }
};

// Checks every table entry that the bodies will follow. What `plan` held goes, and its memory is used again.
void plan_attention(const AttentionArgs& args, int num_threads, AttentionPlan& plan);

// The parts of the rows of one (sequence, kv-head): [parts][rows] maxima, [parts][rows] denominators, then [parts][rows][v_dim] unnormalized sums.
//
// Maxima and denominators of all parts lie side by side, since those of a shared beginning are nearly all added up by one item: its other parts
// are a maximum of -inf, and nobody touches their sums. (Each part apart, a layer's parts of 32 sequences on 2048 shared slots and 8 kv-heads
// were 2.4 MB that weights had driven out of the caches before every layer: writing a beginning's parts took 40 us an item.)
struct Parts {
  float* base;
  int64_t count, rows, v_dim;

  float* tops(int64_t part) const { return base + part * rows; }
  float* totals(int64_t part) const { return base + (count + part) * rows; }
  float* sums(int64_t part) const { return base + in_lines(2 * count * rows) + part * rows * v_dim; }
  int64_t floats() const { return in_lines(2 * count * rows) + in_lines(count * rows * v_dim); }

 private:
  static int64_t in_lines(int64_t floats) { return (floats + 15) / 16 * 16; }
};

inline Parts parts_of(const AttentionArgs& a, float* base, int64_t num_queries, int64_t count) {
  return {base, count, num_queries * a.group(), a.v_dim};
}

// ---- the bodies (attention_body.cpp, once per instruction set) ------------------------------------------------------------

struct AttentionScratch {
  float* partials = nullptr;
  float* norms = nullptr;  // [T, Hq, 2] maximum and denominator of each row, kept for the probability sums; or null
};

// `soon`: an item that this thread will likely take next, or null: its first slots are fetched during the last ones of `item`.
// `cold`: nobody has fetched those of `item`.
PAGODA_DECLARE_BODIES(void, run_item, (const AttentionArgs&, const Span* spans, const AttentionItem& item,
                                       const AttentionItem* soon, bool cold, const AttentionScratch&))
#ifdef PAGODA_X86
namespace amx {
// The same for an item whose numbers are pairs (attention_tiles.cpp).
void run_item(const AttentionArgs&, const Span* spans, const AttentionItem& item, const AttentionItem* soon, bool cold,
              const AttentionScratch&);
}  // namespace amx
#endif
PAGODA_DECLARE_BODIES(void, run_merge, (const AttentionArgs&, const Merge&, const AttentionScratch&))
PAGODA_DECLARE_BODIES(void, run_sums, (const AttentionArgs&, const SumItem&, const AttentionScratch&))

}  // namespace pagoda
