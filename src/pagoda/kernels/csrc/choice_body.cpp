// Bounds of query times key over boxes, for one instruction set (choice.hpp).
#include "choice.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

// The largest of kHeads products with one box: a corner's register is read once for all heads.
template <int kHeads>
inline float bound_of(const float* queries, int64_t width, const float* box) {
  Vec sum[kHeads];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) sum[h] = Vec{};
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) {
    const Vec corner = load(box + d);
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) sum[h] += load(queries + h * width + d) * corner;
  }
  float best = -kInf;
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
    float total = total_of(sum[h]);
    for (int64_t i = d; i < width; ++i) total += queries[h * width + i] * box[i];
    best = total > best ? total : best;
  }
  return best;
}

template <int kHeads>
void score(const BoxScoreArgs& a, const float* queries, bool first) {
  for (int64_t page = 0; page < a.pages; ++page) {
    float best = first ? -kInf : a.out[page];
    for (int64_t b = 0; b < a.boxes_per_page; ++b) {
      const float bound = bound_of<kHeads>(queries, a.width, a.boxes + (page * a.boxes_per_page + b) * a.width);
      best = bound > best ? bound : best;
    }
    a.out[page] = best;
  }
}

}  // namespace

namespace PAGODA_ISA {

void run_box_scores(const BoxScoreArgs& a) {
  for (int64_t head = 0; head < a.heads;) {
    const float* queries = a.queries + head * a.width;
    const bool first = head == 0;
    switch (a.heads - head) {
      case 1: score<1>(a, queries, first), head += 1; break;
      case 2: score<2>(a, queries, first), head += 2; break;
      case 3: score<3>(a, queries, first), head += 3; break;
      case 4: score<4>(a, queries, first), head += 4; break;
      case 5: score<5>(a, queries, first), head += 5; break;
      case 6: score<6>(a, queries, first), head += 6; break;
      case 7: score<7>(a, queries, first), head += 7; break;
      default: score<8>(a, queries, first), head += 8;
    }
  }
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
