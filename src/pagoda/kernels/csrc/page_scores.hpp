// How much each full page of a head promises the queries of its group, without attending to it (ops/page_scores.py has the contract).
//
//   marks     rows     float [page][mark][stride]   bounds of boxes, mean keys            product of a query with each mark
//             halves   bfloat16, the same
//             columns  uint8 [channel][page of `room`][slot / 2]  the numbers of every key, of which some are read    with each slot
//                      the upper four bits of code + 128, two slots a byte; behind the channels two rows more are the slots' scales
//                      (scale_of). Of column_group() slots the first half has the lower bits, and the first of the two rows
//             bytes    uint8 [page][four channels][slot][4]     the same, for queries that want all of them: code + 128, then uint8 [slot]
//                      scales. To meet bytes and columns, queries are rounded to 127ths of a head's largest number
//             codes    int16 [page][slot]   which of `given` [codes][width] is near       with each of `given`, looked up by slot
//             keys     the keys in the page                                               with each slot
//   weigh     product: the largest of a page is its score. softmax: over all of a head's. peak: e^(x - the head's largest).
//             Then heads are taken together (sum or largest), and a page is worth the sum over its slots.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "dtype.hpp"
#include "isa.hpp"
#include "page_shape.hpp"

namespace pagoda {

enum class Marks : int32_t { rows = 0, columns = 1, codes = 2, keys = 3, bytes = 4, halves = 5 };
// What becomes of a query first: nothing; max(q, 0) beside min(q, 0); its product with `given` [dim][width] / 128; a turn by `turn`; its `rank`
// channels that are largest over the group.
enum class Query : int32_t { plain = 0, split = 1, project = 2, turn = 3, thin = 4 };
enum class Weigh : int32_t { product = 0, softmax = 1, peak = 2 };

// The scale of a slot's bytes in a byte: 1, 1.125, … 1.875 times 2^-24 … 2^7.
constexpr int32_t kScaleOfZero = (127 - 24) << 3, kScaleShift = 20;

inline float scale_of(uint8_t byte) {
  const uint32_t bits = uint32_t(byte + kScaleOfZero) << kScaleShift;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return scale;
}

// Slots of a page whose columns lie together.
inline int64_t column_group(int64_t per_page) { return per_page % 16 ? per_page : 16; }

// The same for all pages that a policy judges; int32 numbers side by side, as Python writes them.
struct PageRule {
  int32_t marks = 0, query = 0, weigh = 0, sum_heads = 0;
  int32_t per_page = 1;    // marks, codes or slots of a page
  int32_t stride = 0;      // rows, halves: numbers between two marks; bytes: channels that are kept, and one more; columns: two more
  int32_t rank = 0;        // of Query::thin
  int32_t first_page = 0;  // whether the first page is always read; scores do not say so

  Marks kind() const { return Marks(marks); }
  int64_t channels() const { return stride - (kind() == Marks::columns ? 2 : 1); }  // of columns and bytes
  // Numbers of a prepared query.
  int64_t width(int64_t dim) const {
    switch (Query(query)) {
      case Query::split: return 2 * dim;
      case Query::project: return channels();
      case Query::thin: return rank < dim ? rank : dim;
      default: return dim;
    }
  }
  int64_t mark_bytes() const {  // of a page
    const int64_t numbers = int64_t{per_page} * stride;
    switch (kind()) {
      case Marks::rows: return 4 * numbers;
      case Marks::halves: return 2 * numbers;
      case Marks::columns: return numbers / 2;
      case Marks::bytes: return numbers;
      case Marks::codes: return 2 * per_page;
      default: return 0;
    }
  }
};

constexpr float kGivenUnit = 1.0f / 128;  // of Query::project

struct PageScoreArgs {
  PageRule rule;
  int64_t heads = 0, dim = 0, pages = 0;  // of the group, of a query, full pages
  float scale = 1.0f;                     // > 0, of the products where they are weighed
  const char* marks = nullptr;
  int64_t room = 0;              // columns: pages from a channel to the next one
  const char* given = nullptr;   // Query::project: int8 [dim][width], 128ths; Marks::codes: float [num_given][width]
  int64_t num_given = 0;
  const float* turn = nullptr;  // [dim / 2] cosines, then sines
  int64_t outliers = 0;         // so many pages with the smallest number behind a mark's own (rows, halves) go before all others
  // Marks::keys: the storage, and the pages' ids (less `offset`), which were checked.
  const char* storage = nullptr;
  PageShape shape;
  const int32_t* ids = nullptr;
  int64_t offset = 0;
  float* out = nullptr;  // [pages]
};

// Of `given`, for one kv-head.
inline int64_t given_bytes(const PageRule& rule, int64_t dim, int64_t num_given) {
  if (rule.kind() == Marks::codes) return 4 * num_given * rule.width(dim);
  return Query(rule.query) == Query::project ? dim * rule.channels() : 0;
}

// std::out_of_range for a page, `offset` further than its id, that is not there.
void check_pages(const int32_t* ids, int64_t count, int64_t offset, int64_t num_pages);

// Memory that will be read.
struct Bytes {
  const char* at = nullptr;
  int64_t count = 0;
};

// What a score reads is asked for while the one before is made: a choice of 400 tokens looks at 100 to 400 lines that a step of a large
// model has pushed out of the caches (a choice by sparq takes 2.9 us out of the second cache, out of memory 6.6, 5.4 asked for).
struct Soon {
  const Bytes* parts = nullptr;
  int64_t count = 0, lines = 0;
};

// What a body is given: prepared queries [heads][width]; `channels` [width] of those that are kept, or null: the first ones;
// room for numbers.
struct PreparedQueries {
  const float* queries = nullptr;
  int64_t width = 0;
  bool are_bf16 = false;  // all of them numbers of bfloat16
  const int32_t* channels = nullptr;
  // For marks of bytes and columns: codes [width / 4, rounded up][heads][4], and of each head what one is worth, and -128 times their sum.
  const int8_t* codes = nullptr;
  const float* units = nullptr;
  const int32_t* starts = nullptr;
  float* room = nullptr;
  bool asked = false;  // for what will be read

  int64_t fours() const { return (width + 3) / 4; }
};

// Where a line begins, at `at` or less than a line behind it.
template <typename Number>
Number* line_from(Number* at) {
  return reinterpret_cast<Number*>((reinterpret_cast<uintptr_t>(at) + 63) & ~uintptr_t{63});
}

constexpr int64_t kPageScorePad = 64;  // numbers behind a head's, which a body may write

// Products that a body keeps for each head.
inline int64_t products_of(const PageScoreArgs& a) {
  return a.rule.kind() == Marks::codes ? a.num_given : a.pages * a.rule.per_page;
}
inline int64_t page_score_room(const PageScoreArgs& a) {
  return (a.heads + 1) * (products_of(a) + 2 * kPageScorePad) + a.rule.per_page * (a.dim + kPageScorePad) + a.heads * (a.dim + kPageScorePad) +
         kPageScorePad / 4 * (a.dim + kPageScorePad) + kPageScorePad / 4;
}

// Where prepared queries lie: [query_room()] numbers; [heads + kPageScorePad] units, and what thin ones grow by; [heads] starts; channels
// [3 (dim + kPageScorePad)]; codes as PreparedQueries has them.
struct QueryRoom {
  float *queries, *units, *growth;
  int32_t *channels, *starts;
  int8_t* codes;
};

inline int64_t query_room(int64_t heads, int64_t dim, int64_t width) { return (heads + 1) * (dim + width + 2 * kPageScorePad); }

// Queries `dtype` [heads][dim], `q_stride` numbers apart, as the marks want them; `width` is known.
PAGODA_DECLARE_BODIES(void, prepare_queries,
                      (const PageScoreArgs&, const void* queries, Dtype dtype, int64_t q_stride, const QueryRoom&, PreparedQueries&))

// Whether these queries are so like the `last` [heads][dim], which scored, that its scores serve: by a cosine above `alike`. Else `last`
// is these now. `room` [heads][dim].
PAGODA_DECLARE_BODIES(bool, is_alike,
                      (const void* queries, Dtype dtype, int64_t heads, int64_t dim, int64_t q_stride, float alike, float* room, float* last))

PAGODA_DECLARE_BODIES(void, run_page_scores, (const PageScoreArgs&, const PreparedQueries&, const Soon&))

// Writes the `keep` pages (1 … count) of the highest scores to `out` [keep + 1], in ascending order; of equals the earlier. Before all
// others come the first page, where `first_page`, and the newest; NaN counts as the lowest. `room`: [count + kPageScorePad].
PAGODA_DECLARE_BODIES(void, best_pages, (const float* scores, int64_t count, int64_t keep, bool first_page, int32_t* room, int32_t* out))

// One head's score in two steps: what it will read is known once its queries are prepared. Keeps its memory.
class PageScorer {
 public:
  // Queries `dtype` [heads][dim], `q_stride` numbers apart.
  void prepare(const PageScoreArgs& args, const void* queries, Dtype dtype, int64_t q_stride, const std::string& isa);

  // Adds what run() reads first, which the caller asks for.
  void find_lines(std::vector<Bytes>& to);

  // out [pages]
  void run(float* out, const Soon& soon, const std::string& isa);

 private:
  void put_outliers_ahead();

  PageScoreArgs args_;
  PreparedQueries prepared_;
  std::vector<float> queries_, units_, odd_;
  std::vector<int32_t> channels_, order_, starts_;
  std::vector<int8_t> codes_;
};

}  // namespace pagoda
