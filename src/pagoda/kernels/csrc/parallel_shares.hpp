// Work in a row that lies in memory as a row does, shared among threads: each reads on where it stopped.
//
//   units      0 ················ 8 ················ 16
//              │ own of thread 0   │ own of thread 1   │
//              └► from the front   └► … ◄ from the back, by whoever has finished
//
// Items of one queue (parallel_for) are cheap to share but jump: what follows an item in memory is another thread's. Here a thread knows
// what it will read next, and can ask for it (LinearSlice::next). Pieces become smaller towards a share's end, so that all end together.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "parallel.hpp"

namespace pagoda {

constexpr int kMostShares = 64;

// Units that are left of a share, first << 32 | end.
class Share {
 public:
  void set(int64_t first, int64_t end) { left_.store(uint64_t(first) << 32 | uint64_t(end), std::memory_order_relaxed); }

  // A quarter of what is left, `most` at most, from the front or the back. False: nothing is left.
  bool take(int64_t most, bool front, int64_t& first, int64_t& end) {
    uint64_t seen = left_.load(std::memory_order_relaxed);
    for (;;) {
      const int64_t begin = int64_t(seen >> 32), stop = int64_t(uint32_t(seen)), count = std::min(most, (stop - begin + 3) / 4);
      if (count <= 0) return false;
      first = front ? begin : stop - count, end = first + count;
      const uint64_t then = front ? uint64_t(end) << 32 | uint64_t(stop) : uint64_t(begin) << 32 | uint64_t(first);
      if (left_.compare_exchange_weak(seen, then, std::memory_order_relaxed)) return true;
    }
  }

 private:
  alignas(64) std::atomic<uint64_t> left_{0};
};

// Calls body(first, end, share) until every unit of 0..units was in one call's first..end. `share`: whose work it is, the number of the
// thread's own or -1 where it is another's. A share begins at unit share * units / shares; their number is that of the threads.
template <typename Body>
void parallel_shares(int64_t units, int num_threads, int64_t most, Body&& body) {
  const int64_t count = std::min<int64_t>({int64_t{num_threads}, units, kMostShares});
  if (count <= 1) {
    if (units > 0) body(int64_t{0}, units, int64_t{0});
    return;
  }
  Share shares[kMostShares];
  for (int64_t i = 0; i < count; ++i) shares[i].set(i * units / count, (i + 1) * units / count);
  parallel_for(count, static_cast<int>(count), [&](int64_t own) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t share = (own + i) % count;
      for (int64_t first, end; shares[share].take(most, i == 0, first, end);) body(first, end, i == 0 ? own : -1);
    }
  });
}

}  // namespace pagoda
