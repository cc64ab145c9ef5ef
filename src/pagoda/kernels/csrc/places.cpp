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

}  // namespace

void Places::take(int seat) {
  know_self();
  Seat& s = seats_[seat];
  s.thread.store(self.thread, std::memory_order_relaxed), s.clock.store(self.clock, std::memory_order_relaxed);
  s.cpu.store(self.thread ? sched_getcpu() : kFree, std::memory_order_release);
}

void Places::leave(int seat) {
  std::atomic<int>& cpu = seats_[seat].cpu;
  for (int was = cpu.load(std::memory_order_acquire);;) {
    if (was == kTouched) {
      const timespec moment{0, 20'000};  // asleep, so that whoever touches it runs
      nanosleep(&moment, nullptr);
      was = cpu.load(std::memory_order_acquire);
      continue;
    }
    cpu_set_t allowed{};
    if (was == kMoved) allowed = allowed_;
    if (!cpu.compare_exchange_weak(was, kFree, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
    if (was == kMoved) sched_setaffinity(0, sizeof allowed, &allowed);
    return;
  }
}

bool Places::change_with(Seat& other, int other_cpu) {
  const int own = self.thread, own_cpu = sched_getcpu();
  if (own_cpu < 0 || own_cpu == other_cpu || own_cpu >= CPU_SETSIZE || other_cpu >= CPU_SETSIZE) return false;
  int seen = other_cpu;
  if (!other.cpu.compare_exchange_strong(seen, kTouched, std::memory_order_acq_rel)) return false;
  const int thread = other.thread.load(std::memory_order_relaxed);
  cpu_set_t allowed;
  const bool known = sched_getaffinity(own, sizeof allowed, &allowed) == 0 && sched_getaffinity(thread, sizeof allowed_, &allowed_) == 0;
  const bool alike = known && CPU_EQUAL(&allowed, &allowed_) && CPU_ISSET(own_cpu, &allowed) && CPU_ISSET(other_cpu, &allowed);
  const bool moved = alike && move(thread, own_cpu);
  other.cpu.store(moved ? kMoved : other_cpu, std::memory_order_release);
  if (!moved) return false;
  move(own, other_cpu);
  sched_setaffinity(own, sizeof allowed, &allowed);
  seen = kMoved;
  if (other.cpu.compare_exchange_strong(seen, kTouched, std::memory_order_acq_rel)) {
    sched_setaffinity(thread, sizeof allowed, &allowed);
    other.cpu.store(own_cpu, std::memory_order_release);
  }
  return true;
}

bool Places::change(int mine, int seats) {
  know_self();
  if (self.thread == 0 || changing_.exchange(true, std::memory_order_acquire)) return false;
  bool changed = false;
  for (int seat = 0; seat < seats && !changed; ++seat) {
    Seat& s = seats_[seat];
    if (seat == mine || s.cpu.load(std::memory_order_acquire) < 0) continue;
    const clockid_t clock = s.clock.load(std::memory_order_relaxed);
    const int64_t before = ran(clock);
    for (const auto until = std::chrono::steady_clock::now() + kLook; std::chrono::steady_clock::now() < until;) {}
    const int cpu = s.cpu.load(std::memory_order_acquire);
    if (cpu < 0 || before < 0 || ran(clock) != before) continue;
    changed = change_with(s, cpu);
  }
  changing_.store(false, std::memory_order_release);
  return changed;
}

void Places::forget() {
  self = Self{};
  for (Seat& seat : seats_) seat.cpu.store(kFree, std::memory_order_relaxed);
  changing_.store(false, std::memory_order_relaxed);
}

}  // namespace pagoda
