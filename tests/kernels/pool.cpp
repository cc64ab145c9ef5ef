// The pool by itself (csrc/parallel.hpp, csrc/places.hpp), compiled and run by test_parallel.py.
#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "parallel.hpp"
#include "places.hpp"

namespace {

int failures = 0;

void check(bool holds, const char* what) {
  if (!holds) std::printf("not so: %s\n", what), ++failures;
}

void run_items(int threads) {
  constexpr int64_t kItems = 200;
  for (int64_t bad : {int64_t{-1}, int64_t{0}, int64_t{57}, kItems - 1}) {
    std::vector<std::atomic<int>> done(kItems);
    std::string said;
    try {
      pagoda::parallel_for(kItems, threads, [&](int64_t item) {
        for (volatile int work = 0; work < 2000;) work = work + 1;  // so that others take some
        if (item == bad) throw std::runtime_error("item " + std::to_string(item));
        ++done[item];
      });
    } catch (const std::runtime_error& error) {
      said = error.what();
    }
    check(said == (bad < 0 ? "" : "item " + std::to_string(bad)), "the caller is told what an item threw");
    if (threads == 1) continue;
    for (int64_t item = 0; item < kItems; ++item) check(done[item] == (item == bad ? 0 : 1), "every other item ran once");
  }
}

// Two items that wait for each other are two threads': each has a number of its own, the caller 0, in every job the same. (The other need not come.)
void have_seats() {
  check(pagoda::parallel_seat(7) == 7, "no number outside of a job");
  bool both = false;
  for (int job = 0; job < 50; ++job) {
    std::atomic<int> come{0};
    int seats[2] = {-1, -1};
    std::thread::id who[2];
    pagoda::parallel_for(2, 2, [&](int64_t item) {
      ++come;
      for (const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(20); come < 2 && std::chrono::steady_clock::now() < until;)
        std::this_thread::yield();
      seats[item] = pagoda::parallel_seat(7), who[item] = std::this_thread::get_id();
      pagoda::parallel_for(3, 2, [&](int64_t inner) { check(pagoda::parallel_seat(int(inner)) == inner, "nor in a job within it"); });
      check(pagoda::parallel_seat(7) == seats[item], "which is kept");
    });
    for (int item = 0; item < 2; ++item) check(seats[item] == (who[item] != std::this_thread::get_id()), "the caller is 0, the other 1");
    both |= who[0] != who[1];
  }
  check(both, "two threads came");
  check(pagoda::parallel_seat(7) == 7, "nor after it");
}

cpu_set_t allowed() {
  cpu_set_t set;
  sched_getaffinity(0, sizeof set, &set);
  return set;
}

template <typename Then>
void stay_on(int cpu, const Then& then) {  // until that is done
  const cpu_set_t before = allowed();
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  sched_setaffinity(0, sizeof one, &one);
  then();
  sched_setaffinity(0, sizeof before, &before);
}

void change_places() {
  const cpu_set_t before = allowed();
  int first = -1, second = -1;
  for (int cpu = 0; cpu < CPU_SETSIZE && second < 0; ++cpu)
    if (CPU_ISSET(cpu, &before)) (first < 0 ? first : second) = cpu;
  if (second < 0) return;
  static pagoda::Places places;
  check(!places.change(0, 2), "nobody works");
  std::atomic<int> stage{0};
  bool kept = false;
  std::thread other([&] {
    stay_on(second, [] { places.take(1); });  // free again at once, the system might have moved it first
    stage = 1, stage.notify_all();
    stage.wait(1);  // sleeps, as one whom the system does not run
    places.leave(1);
    const cpu_set_t after = allowed();
    kept = CPU_EQUAL(&after, &before);
  });
  stage.wait(0);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  stay_on(first, [] { places.take(0); });
  const bool changed = places.change(0, 2);
  check(changed || sched_getcpu() == second, "a thread that does not run is found");
  check(!changed || sched_getcpu() == second, "and the one that waits goes where it was");
  const cpu_set_t after = allowed();
  check(CPU_EQUAL(&after, &before), "where the caller may run is what it was");
  stage = 2, stage.notify_all();
  other.join();
  check(kept, "where the other may run is what it was");

  std::atomic<bool> stop{false};
  std::thread busy([&] {
    places.take(1);
    stage = 3, stage.notify_all();
    while (!stop) {}
    places.leave(1);
  });
  stage.wait(2);
  int changes = 0;
  for (int look = 0; look < 20; ++look) changes += places.change(0, 2);
  stop = true, busy.join();
  std::printf("changes beside a thread that runs: %d\n", changes);
}

// Two cores, so that few threads are in each other's way.
void narrow_to_two() {
  const cpu_set_t before = allowed();
  cpu_set_t two;
  CPU_ZERO(&two);
  for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&two) < 2; ++cpu)
    if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &two);
  sched_setaffinity(0, sizeof two, &two);
}

// Beside a busy neighbour places are changed, also the caller's: when its job is done it may run where it might before, and so may what
// it starts then.
void leave_callers_free() {
  const cpu_set_t before = allowed();
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) {}
  });
  bool free = true;
  for (const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(2); free && std::chrono::steady_clock::now() < until;) {
    pagoda::parallel_for(8, 2, [](int64_t) {
      for (volatile int work = 0; work < 60000;) work = work + 1;
    });
    const cpu_set_t after = allowed();
    free = CPU_EQUAL(&after, &before);
  }
  stop = true, busy.join();
  check(free, "a caller whose job is done may run where it might before");
}

}  // namespace

int main() {
  narrow_to_two();
  have_seats();  // while there is no third thread, which might be woken in its place
  leave_callers_free();
  for (int threads : {1, 2, 4}) run_items(threads);
  change_places();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
