// What goes before all scores; the scores are page_scores_body.cpp's, queries as the marks want them page_queries_body.cpp's.
#include "page_scores.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

namespace pagoda {

namespace {

constexpr float kAhead = 2.0f;          // of a page that goes before all others, whose shares are below 1
constexpr int64_t kMostSoon = 32 << 10;  // bytes: what is more would push this score's own out of the first cache

// The number behind a mark's own: of a row, or of one in halves.
float behind(const PageScoreArgs& a, int64_t mark) {
  const int64_t at = (mark + 1) * a.rule.stride - 1;
  float number;
  if (a.rule.kind() == Marks::rows) return std::memcpy(&number, a.marks + 4 * at, 4), number;
  uint16_t half;
  std::memcpy(&half, a.marks + 2 * at, 2);
  const uint32_t bits = uint32_t{half} << 16;
  return std::memcpy(&number, &bits, 4), number;
}

// Of a score while it is made. A thread has one for all its scorers, so that it stays in the first cache.
thread_local std::vector<float> room_of_scores;

// Room for so many numbers, from a line's beginning on: a register of numbers then lies in one line.
template <typename Number>
Number* room_for(int64_t count, std::vector<Number>& in) {
  in.resize(count + 64 / sizeof(Number));
  return line_from(in.data());
}

// From a line's beginning on, so that the last one counts, too.
Bytes lines_of(const char* at, int64_t count) {
  const int64_t before = reinterpret_cast<uintptr_t>(at) & 63;
  return {at - before, count + before};
}

}  // namespace

void check_pages(const int32_t* ids, int64_t count, int64_t offset, int64_t num_pages) {
  for (int64_t i = 0; i < count; ++i)
    if (const int64_t page = ids[i] + offset; page < 0 || page >= num_pages)
      throw std::out_of_range("page " + std::to_string(page) + " of " + std::to_string(num_pages));
}

void PageScorer::prepare(const PageScoreArgs& a, const void* queries, Dtype dtype, int64_t q_stride, const std::string& isa) {
  args_ = a;
  if (a.pages == 0) return;
  const int64_t width = a.rule.width(a.dim);
  units_.resize(2 * (a.heads + kPageScorePad)), starts_.resize(a.heads), codes_.resize(a.heads * (width + kPageScorePad));
  prepared_ = PreparedQueries();
  prepared_.width = width;
  const QueryRoom room{room_for(query_room(a.heads, a.dim, width), queries_), units_.data(), units_.data() + a.heads + kPageScorePad,
                       room_for(3 * (a.dim + kPageScorePad), channels_), starts_.data(), codes_.data()};
  PAGODA_BODY(isa, prepare_queries)(a, queries, dtype, q_stride, room, prepared_);
}

void PageScorer::find_lines(std::vector<Bytes>& to) {
  prepared_.asked = true;
  const PageScoreArgs& a = args_;
  if (a.pages == 0 || a.rule.kind() == Marks::keys) return;
  if (a.rule.kind() == Marks::columns) {
    const int64_t apart = a.room * a.rule.per_page / 2, count = std::min(a.pages * a.rule.per_page / 2, kMostSoon / (prepared_.width + 2));
    const auto before = to.size();
    to.resize(before + prepared_.width + 2);
    Bytes* part = to.data() + before;
    for (int64_t w = 0; w < prepared_.width; ++w) *part++ = lines_of(a.marks + (prepared_.channels ? prepared_.channels[w] : w) * apart, count);
    for (int64_t row = 0; row < 2; ++row) *part++ = lines_of(a.marks + (a.rule.channels() + row) * apart, count);
    return;
  }
  if (a.rule.kind() == Marks::codes) to.push_back({a.given, std::min(given_bytes(a.rule, a.dim, a.num_given), kMostSoon)});
  to.push_back({a.marks, std::min(a.pages * a.rule.mark_bytes(), kMostSoon)});
}

void PageScorer::run(float* out, const Soon& soon, const std::string& isa) {
  args_.out = out;
  if (args_.pages == 0) return;
  prepared_.room = room_for(page_score_room(args_), room_of_scores);
  PAGODA_BODY(isa, run_page_scores)(args_, prepared_, soon);
  if (args_.outliers > 0) put_outliers_ahead();
}

// The pages with the smallest number behind one of their marks, of equals the earlier.
void PageScorer::put_outliers_ahead() {
  const PageScoreArgs& a = args_;
  const int64_t count = std::min(a.outliers, a.pages);
  order_.resize(a.pages), odd_.resize(a.pages);
  for (int64_t page = 0; page < a.pages; ++page) {
    odd_[page] = behind(a, page * a.rule.per_page);
    for (int64_t i = 1; i < a.rule.per_page; ++i) odd_[page] = std::min(odd_[page], behind(a, page * a.rule.per_page + i));
  }
  std::iota(order_.begin(), order_.end(), 0);
  std::partial_sort(order_.begin(), order_.begin() + count, order_.end(), [&](int32_t x, int32_t y) {
    return odd_[x] != odd_[y] ? odd_[x] < odd_[y] : x < y;
  });
  for (int64_t i = 0; i < count; ++i) a.out[order_[i]] += kAhead;
}

}  // namespace pagoda
