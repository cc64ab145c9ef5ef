#include "choice.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "parallel.hpp"

namespace pagoda {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

float number(const AttentionArgs& a, int64_t at) {
  if (a.dtype == Dtype::f32) return static_cast<const float*>(a.q)[at];
  const uint32_t bits = uint32_t{static_cast<const uint16_t*>(a.q)[at]} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// [group][2 * k_dim]: max(q, 0) beside min(q, 0) of the heads that share a kv-head.
void split_queries(const AttentionArgs& a, int64_t token, int64_t head, std::vector<float>& out) {
  const int64_t group = a.group(), dim = a.shape.k_dim;
  out.resize(group * 2 * dim);
  for (int64_t g = 0; g < group; ++g)
    for (int64_t d = 0; d < dim; ++d) {
      const float q = number(a, token * a.q_token_stride + (head * group + g) * a.q_head_stride + d);
      out[g * 2 * dim + d] = std::max(q, 0.0f), out[g * 2 * dim + dim + d] = std::min(q, 0.0f);
    }
}

// The `keep` pages of the highest scores in ascending order; of equals the earlier.
void best_pages(const std::vector<float>& scores, int64_t keep, std::vector<int32_t>& out) {
  out.resize(scores.size());
  std::iota(out.begin(), out.end(), 0);
  std::nth_element(out.begin(), out.begin() + (keep - 1), out.end(), [&](int32_t x, int32_t y) {
    return scores[x] != scores[y] ? scores[x] > scores[y] : x < y;
  });
  out.resize(keep);
  std::sort(out.begin(), out.end());
}

struct Working {
  std::vector<float> queries, bounds, scores;
  std::vector<int32_t> pages;
};

thread_local Working working;

}  // namespace

void choose_pages(AttentionArgs& a, const PageChoice& choice, int64_t layer, int num_threads, const std::string& isa,
                  ChosenTable& table) {
  const auto body = PAGODA_BODY(isa, run_box_scores);
  const int64_t heads = a.num_kv_heads, pairs = a.num_seqs * heads, width = a.max_pages, page_size = a.shape.page_size;
  table.rows.resize((a.num_rows + choice.count * heads) * width);
  std::copy_n(a.rows, a.num_rows * width, table.rows.begin());
  table.row_of.assign(a.row_of, a.row_of + pairs);
  table.offset.assign(a.offset, a.offset + pairs);
  table.kv_lens.assign(a.kv_lens, a.kv_lens + pairs);
  for (int64_t c = 0; c < choice.count; ++c)  // before threads follow them
    for (int64_t h = 0; h < heads; ++h)
      if (choice.full[(layer * choice.count + c) * heads + h] + 1 > width) throw std::out_of_range("more pages chosen than a row has");

  parallel_for(choice.count * heads, num_threads, [&](int64_t item) {
    const int64_t c = item / heads, head = item % heads, at = layer * choice.count + c;
    const int64_t full = choice.full[at * heads + head], keep = choice.keep[at * heads + head];
    const int64_t seq = choice.seqs[c], pair = a.pair(seq, head), row = a.num_rows + item, dim2 = 2 * a.shape.k_dim;
    const int32_t* ids = a.rows + a.row_of[pair] * width;
    const int32_t apart = a.offset[pair];
    Working& mine = working;
    if (keep == full) {
      mine.pages.resize(full);
      std::iota(mine.pages.begin(), mine.pages.end(), 0);
    } else {
      const int64_t known = choice.known[at];
      float* kept = choice.scores[at] ? reinterpret_cast<float*>(choice.scores[at]) + head * known : nullptr;
      if (choice.fresh[at]) {
        mine.bounds.resize(full);
        split_queries(a, a.q_starts[seq], head, mine.queries);
        BoxScoreArgs s;
        s.queries = mine.queries.data(), s.heads = a.group(), s.width = dim2, s.pages = full, s.boxes_per_page = choice.boxes[c];
        s.boxes = reinterpret_cast<const float*>(choice.sketches[at]) + head * choice.room[at] * s.boxes_per_page * dim2;
        s.out = kept ? kept : mine.bounds.data();
        body(s);
        kept = s.out;
      }
      mine.scores.assign(full, 0.0f);
      const int64_t there = choice.fresh[at] ? full : std::min(known, full);
      for (int64_t i = 0; i < there; ++i) mine.scores[i] = kept[i] == kept[i] ? kept[i] : -kInfinity;
      mine.scores[full - 1] = kInfinity;
      best_pages(mine.scores, keep, mine.pages);
    }
    int32_t* out = table.rows.data() + row * width;
    for (int64_t i = 0; i < keep; ++i) out[i] = ids[mine.pages[i]] + apart;
    out[keep] = ids[full] + apart;
    table.row_of[pair] = int32_t(row), table.offset[pair] = 0;
    table.kv_lens[pair] = int32_t(keep * page_size + a.kv_lens[pair] - full * page_size);
  });
  a.rows = table.rows.data(), a.num_rows += choice.count * heads, a.row_of = table.row_of.data();
  a.offset = table.offset.data(), a.kv_lens = table.kv_lens.data();
}

}  // namespace pagoda
