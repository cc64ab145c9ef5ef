// Where the threads of a job run, so that one that waits can change places with one that the system does not let run.
//
//   core 0   │ waits: nothing is left to take │        core 0   │ goes on with its item          │
//   core 1   │ a neighbour │ holds an item    │   ──►  core 1   │ a neighbour │ waits, holds none │
//
// A thread that loses its core to another process for a slice of the scheduler's (1 to 3 ms, a tenth of a step) holds the item
// that it has begun, and everybody waits for it; the core of whoever waits stands idle, or spins, and the system does not move the
// other there in time. So beside one busy neighbour two threads were as slow as one (0.5B shape, w8a8, two cores: 51 to 53 % of the
// undisturbed speed, 1.04 cores used; with changed places 68 to 70 %, 1.4 to 1.5 cores; the neighbour's fair share leaves 1.5).
#pragma once

#include <sched.h>

#include <atomic>
#include <ctime>

namespace pagoda {

class Places {
 public:
  static constexpr int kSeats = 256;

  // The calling thread works in this seat from now on; until leave() it may hold an item, and after it nobody moves it: it may run where
  // it might before. (Whoever moved it may itself not run for milliseconds before it comes to say so, and threads and processes that are
  // started meanwhile would have one core for good.)
  void take(int seat);
  void leave(int seat);

  // Looks for a thread in another of the first `seats` seats that holds an item and has not run for some microseconds, and changes
  // places with it. Only threads of one set of allowed cores do, and which cores those are stays as it was. True if one was found.
  bool change(int mine, int seats);

  // After fork(): the other threads are gone, and this one has another number.
  void forget();

 private:
  static constexpr int kFree = -1;     // nobody works here
  static constexpr int kTouched = -2;  // who sits here is being moved, or let go: for a call of the system
  static constexpr int kMoved = -3;    // may run on one core alone, until whoever moved it or leave() lets it go

  struct alignas(64) Seat {
    std::atomic<int> cpu{kFree};  // where it was when it sat down, or one of the above
    std::atomic<int> thread{0};
    std::atomic<clockid_t> clock{0};  // of its processor time
  };

  // Each to the other's core. False where the system or the sets of cores that they may run on do not let them.
  bool change_with(Seat& other, int other_cpu);

  Seat seats_[kSeats];
  std::atomic<bool> changing_{false};
  cpu_set_t allowed_;  // of who was moved
};

}  // namespace pagoda
