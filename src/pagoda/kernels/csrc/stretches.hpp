// Items in an order of their own, a stretch of neighbours for each thread.
//
// A thread takes the items of its own stretch from the front, so it knows which comes next and can fetch its memory, and what
// neighbours have in common stays in one thread's caches. When its own are gone it takes those that others have left, from the back:
//
//   thread 0  │ 0 │ 1 │ 2 │ 3 │           thread 1  │ 4 │ 5 │ 6 │ 7 │
//              ──►                                    ──►        ◄── thread 0, when 3 is taken
//
// So a thread that the system runs late costs the item that it holds and nothing else (parallel.hpp), even one that never comes.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace pagoda {

class Stretches {
 public:
  // Thread t has the items starts[t]..starts[t + 1]. Not while walk() runs.
  void reset(const std::vector<int32_t>& starts) {
    count_ = int64_t(starts.size()) - 1;
    if (rest_.size() < starts.size() - 1) rest_ = std::vector<Rest>(starts.size() - 1);
    for (int64_t t = 0; t < count_; ++t) rest_[t].ends.store(word(starts[t], starts[t + 1]), std::memory_order_relaxed);
  }

  int64_t count() const { return count_; }

  // Calls act(item, the one that will likely follow or -1, whether the call before said so) for items until none is left. Each thread
  // calls it once, with its number.
  template <typename Act>
  void walk(int64_t thread, Act act) {
    int64_t said = -1;
    for (int64_t turn = 0; turn < count(); ++turn) {
      Rest &rest = rest_[(thread + turn) % count()], &other = rest_[(thread + turn + 1) % count()];
      for (int64_t soon = -1, item; (item = turn == 0 ? first_of(rest, &soon) : last_of(rest, &soon)) >= 0; said = soon) {
        if (soon < 0 && turn + 1 < count()) soon = last(other.ends.load(std::memory_order_relaxed));
        act(item, soon, item == said);
      }
    }
  }

 private:
  struct alignas(64) Rest {
    std::atomic<uint64_t> ends{0};  // first << 32 | last + 1 of what nobody has taken
  };

  static uint64_t word(uint64_t first, uint64_t end) { return first << 32 | end; }
  static int64_t last(uint64_t ends) { return ends >> 32 < uint32_t(ends) ? int64_t(uint32_t(ends)) - 1 : -1; }

  static int64_t first_of(Rest& rest, int64_t* soon) {
    for (uint64_t seen = rest.ends.load(std::memory_order_relaxed); last(seen) >= 0;) {
      if (!rest.ends.compare_exchange_weak(seen, seen + word(1, 0), std::memory_order_relaxed)) continue;
      const int64_t item = int64_t(seen >> 32);
      *soon = item < last(seen) ? item + 1 : -1;
      return item;
    }
    return -1;
  }

  static int64_t last_of(Rest& rest, int64_t* soon) {
    for (uint64_t seen = rest.ends.load(std::memory_order_relaxed); last(seen) >= 0;) {
      if (!rest.ends.compare_exchange_weak(seen, seen - 1, std::memory_order_relaxed)) continue;
      const int64_t item = last(seen);
      *soon = item > int64_t(seen >> 32) ? item - 1 : -1;
      return item;
    }
    return -1;
  }

  std::vector<Rest> rest_;  // the first count_ are this time's
  int64_t count_ = 0;
};

}  // namespace pagoda
