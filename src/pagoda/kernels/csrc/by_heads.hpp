// Heads of a group several at a time, for one instruction set: what they have in common is then read once for all of them.
#pragma once

#include <cstdint>

namespace pagoda {
namespace {

// Calls act(integral constant) for every eight heads and what is left: head, heads of them at once.
template <int kHeads>
struct Heads {
  static constexpr int value = kHeads;
};

template <typename Act>
void by_heads(int64_t heads, const Act& act) {  // not copied: words written one by one and read together have to wait
  for (int64_t head = 0; head < heads; head += 8) {
    switch (heads - head) {
      case 1: act(head, Heads<1>{}); break;
      case 2: act(head, Heads<2>{}); break;
      case 3: act(head, Heads<3>{}); break;
      case 4: act(head, Heads<4>{}); break;
      case 5: act(head, Heads<5>{}); break;
      case 6: act(head, Heads<6>{}); break;
      case 7: act(head, Heads<7>{}); break;
      default: act(head, Heads<8>{});
    }
  }
}

}  // namespace
}  // namespace pagoda
