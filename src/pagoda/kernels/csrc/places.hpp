// Where the threads of a job run, so that one that waits can change places with one that the system does not let run.
//
//   core 0   │ waits: nothing is left to take │        core 0   │ goes on with its item          │
//   core 1   │ a neighbour │ holds an item    │   ──►  core 1   │ a neighbour │ waits, holds none │
//
// A thread that loses its core to another process for a slice of the scheduler's (1 to 3 ms, a tenth of a step) holds the item
// that it has begun, and everybody waits for it; the core of whoever waits stands idle, or spins, and the system does not move the
// other there in time. So beside one busy neighbour two threads were as slow as one (0.5B shape, w8a8, two cores: 51 to 53 % of the
// undisturbed speed, 1.04 cores used; with changed places 68 to 73 %, 1.5 cores, which is all that is left beside the neighbour).
#pragma once

#include <atomic>
#include <ctime>

namespace pagoda {

class Places {
 public:
  static constexpr int kSeats = 256;

  // The calling thread works in this seat from now on; until leave() it may hold an item.
  void take(int seat);
  void leave(int seat) { seats_[seat].cpu.store(-1, std::memory_order_relaxed); }

  // Looks for a thread in another of the first `seats` seats that holds an item and has not run for some microseconds, and changes
  // places with it. Only threads of one set of allowed cores do, and which cores those are stays as it was. True if one was found.
  bool change(int mine, int seats);

  // After fork(): the other threads are gone, and this one has another number.
  void forget();

 private:
  struct alignas(64) Seat {
    std::atomic<int> cpu{-1};  // where it was when it sat down; -1: nobody works here
    std::atomic<int> thread{0};
    std::atomic<clockid_t> clock{0};  // of its processor time
  };

  Seat seats_[kSeats];
  std::atomic<bool> changing_{false};
};

}  // namespace pagoda
