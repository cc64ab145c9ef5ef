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
constexpr int64_t kPagesAhead = 4;           // are asked for while slots move
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Ranked {
  float score;
  int32_t slot;
};

bool better(const Ranked& a, const Ranked& b) { return a.score != b.score ? a.score > b.score : a.slot > b.slot; }

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

// Rows `from[0]`, `from[1]` … of a plane, side by side. A length that the compiler knows is a few moves; one that it does not, a call.
template <int64_t kBytes>
void gather(const char* rows, const int32_t* from, int64_t count, char* to) {
  for (int64_t i = 0; i < count; ++i) std::memcpy(to + i * kBytes, rows + from[i] * kBytes, kBytes);
}

void gather(const Plane& plane, const char* page, const int32_t* from, int64_t count, char* to) {
  const char* rows = page + plane.at;
  switch (plane.bytes) {
    case 2: return gather<2>(rows, from, count, to);
    case 4: return gather<4>(rows, from, count, to);
    case 8: return gather<8>(rows, from, count, to);
    case 16: return gather<16>(rows, from, count, to);
    case 32: return gather<32>(rows, from, count, to);
    case 64: return gather<64>(rows, from, count, to);
    case 128: return gather<128>(rows, from, count, to);
    case 256: return gather<256>(rows, from, count, to);
  }
  for (int64_t i = 0; i < count; ++i) std::memcpy(to + i * plane.bytes, rows + from[i] * plane.bytes, plane.bytes);
}

// The slots of one row that stay, on their way to its front: they gather in two pages' room, plane by plane, and a page goes to its
// place when it is full. No page before the first gap's is written, and nothing behind the last slot that stays: those may be others'.
class RowCloser {
 public:
  RowCloser(char* base, int64_t page_bytes, int64_t page_size, const std::vector<Plane>& planes)
      : base_(base), page_bytes_(page_bytes), page_size_(page_size), planes_(planes), room_(2 * page_bytes), from_(page_size) {}

  void close(const int32_t* pages, const uint8_t* stays, int64_t slots) {
    const int64_t gap = std::find(stays, stays + slots, uint8_t(0)) - stays;
    while (slots > gap && !stays[slots - 1]) --slots;
    if (gap == slots) return;
    int64_t column = gap / page_size_, to = column, held = 0;
    for (; column * page_size_ < slots; ++column) {
      if ((column + kPagesAhead) * page_size_ < slots) fetch_second(base_ + pages[column + kPagesAhead] * page_bytes_, page_bytes_);
      const int64_t first = column * page_size_, here = std::min(page_size_, slots - first);
      int64_t count = 0;
      for (int64_t slot = 0; slot < here; ++slot) from_[count] = int32_t(slot), count += stays[first + slot] != 0;
      if (!count) continue;
      const char* page = base_ + pages[column] * page_bytes_;
      for (const Plane& plane : planes_) gather(plane, page, from_.data(), count, room(plane) + held * plane.bytes);
      held += count;
      if (held < page_size_) continue;
      held -= page_size_;
      put(pages[to++], page_size_);
      for (const Plane& plane : planes_) std::memcpy(room(plane), room(plane) + page_size_ * plane.bytes, held * plane.bytes);
    }
    if (held) put(pages[to], held);
  }

 private:
  char* room(const Plane& plane) { return room_.data() + 2 * plane.at; }

  void put(int32_t page, int64_t count) {
    for (const Plane& plane : planes_) std::memcpy(base_ + page * page_bytes_ + plane.at, room(plane), count * plane.bytes);
  }

  char* const base_;
  const int64_t page_bytes_, page_size_;
  const std::vector<Plane>& planes_;
  std::vector<char> room_;
  std::vector<int32_t> from_;  // slots of the page under way that stay; one more is written than counts
};

}  // namespace

const float* pool_mean(const float* scores, int64_t slots, int64_t kernel, std::vector<float>& out) {
  out.assign(slots, 0.0f);
  for (int64_t apart = -(kernel / 2); apart <= kernel / 2; ++apart) {  // many slots at a time, each one's neighbours in order
    const int64_t end = std::min(slots, slots - apart);
    for (int64_t i = std::max<int64_t>(0, -apart); i < end; ++i) out[i] += scores[i + apart];
  }
  for (int64_t i = 0; i < slots; ++i) out[i] /= float(kernel);
  return out.data();
}

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
  for (int64_t row = 0; row < count; ++row) {  // pages that slots leave, and those that they go to
    const uint8_t* stays = keep + row * slots;
    check_pages(rows + row * width, width, page_size, num_pages, 0, slots, stays);
    check_pages(rows + row * width, width, page_size, num_pages, 0, slots - std::count(stays, stays + slots, uint8_t(0)), nullptr);
  }
  if (count * slots * (page_bytes / page_size) < kParallelBytes) num_threads = 1;
  parallel_for(count, num_threads, [&](int64_t row) {
    RowCloser(base, page_bytes, page_size, planes).close(rows + row * width, keep + row * slots, slots);
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

void keep_only(const EvictArgs& a, const uint8_t* keep, int num_threads) {
  const int64_t rows = a.choice.rows, slots = a.choice.slots;
  const PageShape& s = a.shape;
  std::vector<Plane> planes;
  for (const Plane& plane : {s.k, s.v, s.k_scales, s.v_scales})
    if (plane.bytes) planes.push_back(plane);
  close_gaps(a.pages, a.num_pages, s.page_bytes, s.page_size, planes, a.rows, a.width, keep, rows, slots, num_threads);
  for (const SlotRows& one : a.values) close_rows(one.values, one.width, one.width, keep, rows, slots);
  for (int64_t row = 0; row < rows; ++row)
    a.lens[row] = int32_t(std::count(keep + row * slots, keep + (row + 1) * slots, uint8_t(1)));
}

void evict(EvictArgs& a, int num_threads) {
  std::vector<uint8_t> keep(a.choice.rows * a.choice.slots);
  a.choice.keep = keep.data();
  keep_best(a.choice);
  keep_only(a, keep.data(), num_threads);
}

void check_slots(const ReadArgs& a) {
  for (int64_t row = 0; row < a.count; ++row)
    check_pages(a.rows + row * a.width, a.width, a.shape.page_size, a.num_pages, a.first[row], a.first[row] + a.slots, nullptr);
}

void read_slots(const ReadArgs& a) {
  const PageShape& s = a.shape;
  check_slots(a);
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
