#include "slots.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "attention_rows.hpp"
#include "fetch.hpp"
#include "parallel.hpp"

namespace pagoda {

namespace {

constexpr int64_t kParallelBytes = 1 << 20;  // of slots that may move: below it, waking another thread is not worth it
constexpr int64_t kPagesAhead = 2;           // are asked for while slots move
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Ranked {
  float score;
  int32_t slot;
};

bool better(const Ranked& a, const Ranked& b) { return a.score != b.score ? a.score > b.score : a.slot > b.slot; }

// Mean over `kernel` neighbours; what is beyond the ends counts 0.
const float* pool_mean(const float* scores, int64_t slots, int64_t kernel, std::vector<float>& out) {
  out.assign(slots, 0.0f);
  for (int64_t apart = -(kernel / 2); apart <= kernel / 2; ++apart) {  // many slots at a time, each one's neighbours in order
    const int64_t end = std::min(slots, slots - apart);
    for (int64_t i = std::max<int64_t>(0, -apart); i < end; ++i) out[i] += scores[i + apart];
  }
  for (int64_t i = 0; i < slots; ++i) out[i] /= float(kernel);
  return out.data();
}

// std::out_of_range for slots beyond the row, or for a page that is not there; only where `stays` (null: everywhere) is set.
void check_pages(const int32_t* pages, int64_t width, int64_t page_size, int64_t num_pages, int64_t first, int64_t end,
                 const uint8_t* stays) {
  if (first < 0 || (end + page_size - 1) / page_size > width)
    throw std::out_of_range("slot " + std::to_string(first < 0 ? first : end - 1) + " of " + std::to_string(width * page_size));
  for (int64_t at = first / page_size; at * page_size < end; ++at) {
    if (const int32_t page = pages[at]; page >= 0 && page < num_pages) continue;
    for (int64_t slot = std::max(first, at * page_size); slot < std::min(end, (at + 1) * page_size); ++slot)
      if (!stays || stays[slot]) throw std::out_of_range("page " + std::to_string(pages[at]) + " of " + std::to_string(num_pages));
  }
}

}  // namespace

void keep_best(const KeepBestArgs& a) {
  std::vector<Ranked> ranked;
  std::vector<float> pooled;
  for (int64_t row = 0; row < a.rows; ++row) {
    const float* scores = a.scores ? a.scores + row * a.stride : nullptr;
    if (scores && a.pool > 1) scores = pool_mean(scores, a.slots, a.pool, pooled);
    uint8_t* keep = a.keep + row * a.slots;
    const int64_t held = std::min(a.lens[row], a.slots);
    std::fill_n(keep, a.slots, uint8_t{0});  // of no slots too, where there is nothing to point at
    if (!scores && a.budgets[row] >= held) {
      std::fill_n(keep, held, uint8_t{1});
      continue;
    }
    ranked.clear();
    for (int64_t slot = 0; slot < held; ++slot) {
      const bool sure = slot < a.sinks || slot >= held - a.recent;
      const float score = sure ? kInfinity : scores ? scores[slot] : 0.0f;
      if (score > -kInfinity && (sure || score >= a.least)) ranked.push_back({score, int32_t(slot)});
    }
    const int64_t budget = std::max<int64_t>(0, std::min<int64_t>(a.budgets[row], ranked.size()));
    if (budget < int64_t(ranked.size())) std::nth_element(ranked.begin(), ranked.begin() + budget, ranked.end(), better);
    for (int64_t i = 0; i < budget; ++i) keep[ranked[i].slot] = 1;
  }
}

void close_gaps(char* base, int64_t num_pages, int64_t page_bytes, int64_t page_size, const std::vector<Plane>& planes,
                const int32_t* rows, int64_t width, const uint8_t* keep, int64_t count, int64_t slots, int num_threads) {
  for (int64_t row = 0; row < count; ++row)
    check_pages(rows + row * width, width, page_size, num_pages, 0, slots, keep + row * slots);
  if (count * slots * (page_bytes / page_size) < kParallelBytes) num_threads = 1;
  parallel_for(count, num_threads, [&](int64_t row) {
    const int32_t* pages = rows + row * width;
    const uint8_t* stays = keep + row * slots;
    int64_t to = 0, to_column = 0;  // the next slot, in its page, and which of the row's pages that is
    for (int64_t column = 0, first = 0; first < slots; ++column, first += page_size) {
      if (first + kPagesAhead * page_size < slots)
        fetch(base + pages[column + kPagesAhead] * page_bytes, std::min(page_bytes, kFetchBytes));
      for (int64_t from = 0; from < std::min(page_size, slots - first);) {
        const uint8_t* here = stays + first + from;
        if (!*here) { ++from; continue; }
        const int64_t most = std::min(std::min(page_size, slots - first) - from, page_size - to);
        int64_t run = 1;  // slots that lie side by side, here and there
        while (run < most && here[run]) ++run;
        if (to != from || to_column != column)
          for (const Plane& plane : planes)
            std::memmove(base + pages[to_column] * page_bytes + plane.at + to * plane.bytes,
                         base + pages[column] * page_bytes + plane.at + from * plane.bytes, run * plane.bytes);
        from += run, to += run;
        if (to == page_size) to = 0, ++to_column;
      }
    }
  });
}

void close_rows(float* values, int64_t stride, int64_t width, const uint8_t* keep, int64_t count, int64_t slots) {
  for (int64_t row = 0; row < count; ++row) {
    float* to = values + row * stride;
    const float* from = to;
    const uint8_t* stays = keep + row * slots;
    float* const end = to + width;
    for (int64_t slot = 0; slot < slots; ++slot)
      if (stays[slot]) *to++ = from[slot];
    std::fill(to, end, 0.0f);
  }
}

void evict(EvictArgs& a, int num_threads) {
  const int64_t slots = a.choice.slots;
  std::vector<uint8_t> keep(a.choice.rows * slots);
  a.choice.keep = keep.data();
  keep_best(a.choice);
  const PageShape& s = a.shape;
  std::vector<Plane> planes;
  for (const Plane& plane : {s.k, s.v, s.k_scales, s.v_scales})
    if (plane.bytes) planes.push_back(plane);
  close_gaps(a.pages, a.num_pages, s.page_bytes, s.page_size, planes, a.rows, a.width, keep.data(), a.choice.rows, slots,
             num_threads);
  for (const SlotRows& one : a.values) close_rows(one.values, one.width, one.width, keep.data(), a.choice.rows, slots);
  for (int64_t row = 0; row < a.choice.rows; ++row)
    a.lens[row] = int32_t(std::count(keep.begin() + row * slots, keep.begin() + (row + 1) * slots, uint8_t(1)));
}

void read_slots(const ReadArgs& a) {
  const PageShape& s = a.shape;
  for (int64_t row = 0; row < a.count; ++row)
    check_pages(a.rows + row * a.width, a.width, s.page_size, a.num_pages, a.first[row], a.first[row] + a.slots, nullptr);
  for (int64_t row = 0; row < a.count; ++row)
    for (int64_t i = 0; i < a.slots; ++i) {
      const int64_t slot = a.first[row] + i, inside = slot % s.page_size, at = row * a.slots + i;
      const char* page = a.pages + a.rows[row * a.width + slot / s.page_size] * s.page_bytes;
      const auto place = [&](const Plane& plane) { return page + plane.at + inside * plane.bytes; };
      if (a.k) read_row(s.store, place(s.k), place(s.k_scales), s.k_dim, a.k + at * s.k_dim);
      if (a.v) read_row(s.store, place(s.v), place(s.v_scales), s.v_dim, a.v + at * s.v_dim);
    }
}

void weigh_slots(const ReadArgs& a, const float* weights) {
  std::vector<float> numbers(std::max(a.shape.k_dim, a.shape.v_dim) * a.slots);
  for (int64_t row = 0; row < a.count; ++row)
    for (const bool keys : {true, false}) {
      float* const out = keys ? a.k : a.v;
      const int64_t dim = keys ? a.shape.k_dim : a.shape.v_dim;
      if (!out) continue;
      ReadArgs one = a;
      one.rows = a.rows + row * a.width, one.first = a.first + row, one.count = 1;
      one.k = keys ? numbers.data() : nullptr, one.v = keys ? nullptr : numbers.data();
      read_slots(one);
      float* const sum = out + row * dim;
      std::fill(sum, sum + dim, 0.0f);
      for (int64_t i = 0; i < a.slots; ++i)
        for (int64_t d = 0; d < dim; ++d) sum[d] += weights[row * a.slots + i] * numbers[i * dim + d];
    }
}

void add_sums(const float* sums, int64_t layers, int64_t seqs, int64_t heads, int64_t slots, const int64_t* targets,
              const int64_t* widths) {
  for (int64_t seq = 0; seq < seqs; ++seq) {
    float* const target = reinterpret_cast<float*>(targets[seq]);
    const int64_t both = std::min(slots, widths[seq]);
    if (seq + 1 < seqs)  // which nobody touched since the last step
      fetch(reinterpret_cast<const float*>(targets[seq + 1]), layers * heads * widths[seq + 1] * int64_t{sizeof(float)});
    for (int64_t layer = 0; layer < layers; ++layer)
      for (int64_t head = 0; head < heads; ++head) {
        const float* from = sums + ((layer * seqs + seq) * heads + head) * slots;
        float* to = target + (layer * heads + head) * widths[seq];
        if (seq + 1 < seqs) fetch(from + heads * slots, both * int64_t{sizeof(float)});
        for (int64_t i = 0; i < both; ++i) to[i] += from[i];
      }
  }
}

}  // namespace pagoda
