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

// Neighbours that nobody has taken yet.
class Stretch {
 public:
  struct Taken {
    int64_t first = 0, end = 0;  // equal: nothing was left
    int64_t left = 0;            // after it
  };

  void set(int64_t first, int64_t end) { ends_.store(word(first, end), std::memory_order_relaxed); }

  // The last of them, or -1.
  int64_t last() const {
    const uint64_t seen = ends_.load(std::memory_order_relaxed);
    return left_of(seen) > 0 ? int64_t(uint32_t(seen)) - 1 : -1;
  }

  // count(left) of them, 1 … left, from the front or from the back.
  template <typename Count>
  Taken take(bool front, Count count) {
    uint64_t seen = ends_.load(std::memory_order_relaxed);
    while (left_of(seen) > 0) {
      const int64_t first = int64_t(seen >> 32), end = int64_t(uint32_t(seen)), some = count(end - first);
      const uint64_t then = front ? word(first + some, end) : word(first, end - some);
      if (!ends_.compare_exchange_weak(seen, then, std::memory_order_relaxed)) continue;
      return front ? Taken{first, first + some, end - first - some} : Taken{end - some, end, end - first - some};
    }
    return {};
  }

 private:
  static uint64_t word(int64_t first, int64_t end) { return uint64_t(first) << 32 | uint64_t(end); }
  static int64_t left_of(uint64_t ends) { return int64_t(uint32_t(ends)) - int64_t(ends >> 32); }

  alignas(64) std::atomic<uint64_t> ends_{0};  // first << 32 | last + 1
};

class Stretches {
 public:
  // Thread t has the items starts[t]..starts[t + 1]. Not while walk() runs.
  void reset(const std::vector<int32_t>& starts) {
    count_ = int64_t(starts.size()) - 1;
    if (rest_.size() < starts.size() - 1) rest_ = std::vector<Stretch>(starts.size() - 1);
    for (int64_t t = 0; t < count_; ++t) rest_[t].set(starts[t], starts[t + 1]);
  }

  int64_t count() const { return count_; }

  // Calls act(item, the one that will likely follow or -1, whether the call before said so) for items until none is left. Each thread
  // calls it once, with the number of the stretch that is its own.
  template <typename Act>
  void walk(int64_t thread, Act act) {
    const auto one = [](int64_t) -> int64_t { return 1; };
    int64_t said = -1;
    for (int64_t turn = 0; turn < count(); ++turn) {
      Stretch &rest = rest_[(thread + turn) % count()], &other = rest_[(thread + turn + 1) % count()];
      const auto take = [&] { return rest.take(turn == 0, one); };
      for (Stretch::Taken taken = take(); taken.first < taken.end; taken = take()) {
        const int64_t item = taken.first;
        int64_t soon = taken.left == 0 ? -1 : turn == 0 ? item + 1 : item - 1;
        if (soon < 0 && turn + 1 < count()) soon = other.last();
        act(item, soon, item == said);
        said = soon;
      }
    }
  }

 private:
  std::vector<Stretch> rest_;  // the first count_ are this time's
  int64_t count_ = 0;
};

}  // namespace pagoda
