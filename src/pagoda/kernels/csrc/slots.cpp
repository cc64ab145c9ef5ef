#include "slots.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

namespace pagoda {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Ranked {
  float score;
  int32_t slot;
};

bool better(const Ranked& a, const Ranked& b) { return a.score != b.score ? a.score > b.score : a.slot > b.slot; }

}  // namespace

void keep_best(const KeepBestArgs& a) {
  std::vector<Ranked> ranked;
  for (int64_t row = 0; row < a.rows; ++row) {
    const float* scores = a.scores + row * a.slots;
    uint8_t* keep = a.keep + row * a.slots;
    const int64_t held = std::min(a.lens[row], a.slots);
    std::fill_n(keep, a.slots, uint8_t{0});  // of no slots too, where there is nothing to point at
    ranked.clear();
    for (int64_t slot = 0; slot < held; ++slot) {
      const bool sure = slot < a.sinks || slot >= held - a.recent;
      const float score = sure ? kInfinity : scores[slot];
      if (score > -kInfinity && (sure || score >= a.least)) ranked.push_back({score, int32_t(slot)});
    }
    const int64_t budget = std::max<int64_t>(0, std::min<int64_t>(a.budgets[row], ranked.size()));
    if (budget < int64_t(ranked.size())) std::nth_element(ranked.begin(), ranked.begin() + budget, ranked.end(), better);
    for (int64_t i = 0; i < budget; ++i) keep[ranked[i].slot] = 1;
  }
}

void close_gaps(char* base, int64_t num_pages, int64_t page_bytes, int64_t page_size, const std::vector<Plane>& planes,
                const int32_t* rows, int64_t width, const uint8_t* keep, int64_t count, int64_t slots) {
  const int64_t reached = (slots + page_size - 1) / page_size;
  if (reached > width) throw std::out_of_range("slot " + std::to_string(slots - 1) + " of " + std::to_string(width * page_size));
  for (int64_t row = 0; row < count; ++row)
    for (int64_t slot = 0; slot < slots; ++slot)
      if (const int32_t page = rows[row * width + slot / page_size]; keep[row * slots + slot] && (page < 0 || page >= num_pages))
        throw std::out_of_range("page " + std::to_string(page) + " of " + std::to_string(num_pages));
  for (int64_t row = 0; row < count; ++row) {
    const int32_t* pages = rows + row * width;
    const uint8_t* stays = keep + row * slots;
    int64_t to = 0;
    for (int64_t from = 0; from < slots;) {
      if (!stays[from]) { ++from; continue; }
      const int64_t end = std::min(slots, (from / page_size + 1) * page_size);
      const int64_t most = std::min(end - from, page_size - to % page_size);
      int64_t run = 1;  // slots that lie side by side, here and there
      while (run < most && stays[from + run]) ++run;
      if (to != from)
        for (const Plane& plane : planes)
          std::memmove(base + pages[to / page_size] * page_bytes + plane.at + to % page_size * plane.bytes,
                       base + pages[from / page_size] * page_bytes + plane.at + from % page_size * plane.bytes, run * plane.bytes);
      from += run, to += run;
    }
  }
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

void add_sums(const float* sums, int64_t layers, int64_t seqs, int64_t heads, int64_t slots, const int64_t* targets,
              const int64_t* widths) {
  for (int64_t seq = 0; seq < seqs; ++seq) {
    float* const target = reinterpret_cast<float*>(targets[seq]);
    const int64_t both = std::min(slots, widths[seq]);
    for (int64_t layer = 0; layer < layers; ++layer)
      for (int64_t head = 0; head < heads; ++head) {
        const float* from = sums + ((layer * seqs + seq) * heads + head) * slots;
        float* to = target + (layer * heads + head) * widths[seq];
        for (int64_t i = 0; i < both; ++i) to[i] += from[i];
      }
  }
}

}  // namespace pagoda
