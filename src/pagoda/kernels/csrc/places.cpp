#include "places.hpp"

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>

namespace pagoda {

namespace {

// A thread that runs has used some of it by then; one that is not running has used none.
constexpr auto kLook = std::chrono::microseconds(5);

struct Self {
  int thread = 0;  // 0: not known yet
  clockid_t clock = 0;
};

thread_local Self self;

void know_self() {
  if (self.thread == 0 && pthread_getcpuclockid(pthread_self(), &self.clock) == 0) self.thread = int(syscall(SYS_gettid));
}

// Nanoseconds of processor time; -1: the system does not say.
int64_t ran(clockid_t clock) {
  timespec t;
  return clock_gettime(clock, &t) == 0 ? int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec : -1;
}

bool move(int thread, int cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  return sched_setaffinity(thread, sizeof one, &one) == 0;
}

// Each to the other's core. False where the system or the sets of cores that they may run on do not let them.
bool change_places(int one, int its_cpu, int other, int other_cpu) {
  cpu_set_t allowed, others;
  if (its_cpu < 0 || its_cpu == other_cpu || its_cpu >= CPU_SETSIZE || other_cpu >= CPU_SETSIZE) return false;
  if (sched_getaffinity(one, sizeof allowed, &allowed) || sched_getaffinity(other, sizeof others, &others)) return false;
  if (!CPU_EQUAL(&allowed, &others) || !CPU_ISSET(its_cpu, &allowed) || !CPU_ISSET(other_cpu, &allowed)) return false;
  const bool moved = move(other, its_cpu);
  if (moved) move(one, other_cpu);
  sched_setaffinity(one, sizeof allowed, &allowed);
  sched_setaffinity(other, sizeof others, &others);
  return moved;
}

}  // namespace

void Places::take(int seat) {
  know_self();
  Seat& s = seats_[seat];
  s.thread.store(self.thread, std::memory_order_relaxed), s.clock.store(self.clock, std::memory_order_relaxed);
  s.cpu.store(self.thread ? sched_getcpu() : -1, std::memory_order_release);
}

bool Places::change(int mine, int seats) {
  know_self();
  if (self.thread == 0 || changing_.exchange(true, std::memory_order_acquire)) return false;
  bool changed = false;
  for (int seat = 0; seat < seats && !changed; ++seat) {
    const Seat& s = seats_[seat];
    if (seat == mine || s.cpu.load(std::memory_order_acquire) < 0) continue;
    const clockid_t clock = s.clock.load(std::memory_order_relaxed);
    const int64_t before = ran(clock);
    for (const auto until = std::chrono::steady_clock::now() + kLook; std::chrono::steady_clock::now() < until;) {}
    const int cpu = s.cpu.load(std::memory_order_acquire);
    if (cpu < 0 || before < 0 || ran(clock) != before) continue;
    changed = change_places(self.thread, sched_getcpu(), s.thread.load(std::memory_order_relaxed), cpu);
  }
  changing_.store(false, std::memory_order_release);
  return changed;
}

void Places::forget() {
  self = Self{};
  for (Seat& seat : seats_) seat.cpu.store(-1, std::memory_order_relaxed);
  changing_.store(false, std::memory_order_relaxed);
}

}  // namespace pagoda
