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
#include <cstdint>

#include "parallel.hpp"
#include "stretches.hpp"

namespace pagoda {

constexpr int kMostShares = 64;

// Calls body(first, end, share, further) until every unit of 0..units was in one call's first..end. `share`: whose work it is, the number of the
// thread's own (parallel_seat()) or -1 where it is another's. A share begins at unit share * units / shares; their number is that of the threads.
// further(): for a body that goes on behind `end`: where it ends then, `end` itself when nothing is left.
template <typename Body>
void parallel_shares(int64_t units, int num_threads, int64_t most, Body&& body) {
  const int64_t count = std::min<int64_t>({int64_t{num_threads}, units, kMostShares});
  if (count <= 1) {
    if (units > 0) body(int64_t{0}, units, int64_t{0}, [units] { return units; });
    return;
  }
  Stretch shares[kMostShares];
  const auto some = [most](int64_t left) { return std::min(most, (left + 3) / 4); };
  for (int64_t i = 0; i < count; ++i) shares[i].set(i * units / count, (i + 1) * units / count);
  parallel_for(count, static_cast<int>(count), [&](int64_t item) {
    const int64_t own = parallel_seat(int(item));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t share = (own + i) % count;
      for (Stretch::Taken taken; (taken = shares[share].take(i == 0, some)).first < taken.end;) {
        int64_t end = taken.end;
        body(taken.first, end, i == 0 ? own : -1, [&] {
          if (i == 0) end = std::max(end, shares[share].take(true, some).end);
          return end;
        });
      }
    }
  });
}

}  // namespace pagoda
