// What goes before all scores; the scores are page_scores_body.cpp's, queries as the marks want them page_queries_body.cpp's.
#include "page_scores.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace pagoda {

namespace {

constexpr float kAhead = 2.0f;  // of a page that goes before all others, whose shares are below 1

struct Working {
  std::vector<float> queries, words, room, units;
  std::vector<int32_t> channels, order, offsets;
  std::vector<int8_t> codes;
};

thread_local Working working;

// The pages whose number behind their mark is smallest, of equals the earlier.
void put_outliers_ahead(const PageScoreArgs& a, Working& w) {
  const float* odd = reinterpret_cast<const float*>(a.marks) + a.rule.stride - 1;
  const int64_t count = std::min(a.outliers, a.pages);
  w.order.resize(a.pages);
  std::iota(w.order.begin(), w.order.end(), 0);
  std::partial_sort(w.order.begin(), w.order.begin() + count, w.order.end(), [&](int32_t x, int32_t y) {
    const float one = odd[x * a.rule.stride], other = odd[y * a.rule.stride];
    return one != other ? one < other : x < y;
  });
  for (int64_t i = 0; i < count; ++i) a.out[w.order[i]] += kAhead;
}

}  // namespace

void check_pages(const int32_t* ids, int64_t count, int64_t offset, int64_t num_pages) {
  for (int64_t i = 0; i < count; ++i)
    if (const int64_t page = ids[i] + offset; page < 0 || page >= num_pages)
      throw std::out_of_range("page " + std::to_string(page) + " of " + std::to_string(num_pages));
}

void score_pages(const PageScoreArgs& a, const void* queries, Dtype dtype, int64_t q_stride, const std::string& isa) {
  if (a.pages == 0) return;
  Working& w = working;
  const int64_t width = a.rule.width(a.dim), kept = a.rule.kind() == Marks::bytes ? a.heads * a.rule.stride : 0;
  w.queries.resize(query_room(a.heads, a.dim, width)), w.words.resize(a.heads * (width + kPageScorePad)), w.codes.resize(kept + kPageScorePad);
  w.units.resize(a.heads), w.offsets.resize(a.heads), w.channels.resize(3 * (a.dim + kPageScorePad)), w.room.resize(page_score_room(a));
  PreparedQueries q;
  q.width = width, q.room = w.room.data();
  const QueryRoom room{w.queries.data(), w.words.data(), w.units.data(), w.channels.data(), w.offsets.data(), w.codes.data()};
  PAGODA_BODY(isa, prepare_queries)(a, queries, dtype, q_stride, room, q);
  PAGODA_BODY(isa, run_page_scores)(a, q);
  if (a.outliers > 0) put_outliers_ahead(a, w);
}

}  // namespace pagoda
