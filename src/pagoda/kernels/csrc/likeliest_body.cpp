// The largest logits of groups, for one instruction set (likeliest.hpp).
#include "likeliest.hpp"
#include "vec.hpp"

namespace pagoda {
namespace PAGODA_ISA {

int64_t largest_of_groups(const float* x, int64_t count, float* largest, bool* nan) {
  IntVec odd{};
  for (int64_t at = 0; at + kGroup * kLanes <= count; at += kGroup * kLanes, largest += kLanes) {
    Vec best = load(x + at);
    odd |= best != best;
    for (int64_t i = 1; i < kGroup; ++i) {
      const Vec one = load(x + at + i * kLanes);
      odd |= one != one;
      best = one > best ? one : best;
    }
    store(largest, best);
  }
  for (int i = 0; i < kLanes; ++i) *nan |= odd[i] != 0;
  return kLanes;
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
