#include "parallel.hpp"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <ctime>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>

#include "places.hpp"

#ifdef __x86_64__
#include <immintrin.h>
#define PAGODA_PAUSE() _mm_pause()
#else
#define PAGODA_PAUSE() std::this_thread::yield()
#endif

namespace pagoda {

namespace {

constexpr int kMaxWorkers = Places::kSeats - 1;
// Rounds of pause before a thread sleeps: about 60 us on Zen 4 (a pause is 65 cycles there), 41 on the Xeon. Between two layers of
// a step 1-5 us pass, between two steps some 100; a futex wake costs 5-50 us, and a spinning worker costs its neighbours a core.
// (On the Xeon a step of 18.5 ms takes 19.8 where threads sleep after 5 us, 21.3 after 1.)
constexpr int kSpins = 4000;
// Rounds after which a thread that waits for others looks whether they run at all (places.hpp).
constexpr int kPatience = 2000;
constexpr timespec kLookAgain{0, 1'000'000};  // the same while it sleeps: a scheduler's slice is 1 to 3 ms

void sleep_while(std::atomic<uint32_t>& word, uint32_t value, const timespec* at_most = nullptr) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, at_most, nullptr, 0);
}

void wake(std::atomic<uint32_t>& word, int threads) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, threads, nullptr, nullptr, 0);
}

thread_local int seat = -1;  // of a caller while its job runs, of a worker always

struct Seated {
  explicit Seated(int now) : before(std::exchange(seat, now)) {}
  ~Seated() { seat = before; }
  const int before;
};

// One job at a time. `ticket` is generation << 32 | items not yet claimed; it is the only way to an item, so a worker that
// slept through a job can never run the next one's body on the old one's data: its compare-exchange fails.
class Pool {
 public:
  std::mutex owner;  // held by the thread whose job runs

  void run(int64_t count, int threads, void (*body)(void*, int64_t), void* data) {
    start(threads - 1);
    body_.store(body, std::memory_order_relaxed);
    data_.store(data, std::memory_order_relaxed);
    count_.store(count, std::memory_order_relaxed);
    seats_.store(threads - 1, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    ticket_.store(uint64_t{++generation_} << 32 | uint64_t(count), std::memory_order_seq_cst);
    call_.store(generation_, std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) wake(call_, threads - 1);
    places_.take(0);
    {
      const Seated caller(0);
      work(generation_);
    }
    places_.leave(0);
    for (int spins = 0; done_.load(std::memory_order_acquire) < uint32_t(count);) {
      ++spins;
      if (spins == kPatience || spins >= kSpins) places_.change(0, threads);
      if (spins < kSpins) { PAGODA_PAUSE(); continue; }
      const uint32_t seen = done_.load(std::memory_order_acquire);
      if (seen >= uint32_t(count)) break;
      awaited_.store(1, std::memory_order_seq_cst);
      sleep_while(done_, seen, &kLookAgain);
      awaited_.store(0, std::memory_order_relaxed);
    }
    if (failed_.load(std::memory_order_acquire)) {
      failed_.store(false, std::memory_order_relaxed);
      std::rethrow_exception(std::exchange(failure_, nullptr));
    }
  }

  int size() const { return size_; }

  // After fork() the workers are gone and the locks may be held by threads that do not exist.
  void forget() {
    new (&owner) std::mutex;
    places_.forget();
    size_ = 0;
    sleeping_.store(0);
  }

 private:
  // Where the system grants no more threads, those that there are do the work.
  void start(int wanted) {
    try {
      for (; size_ < std::min(wanted, kMaxWorkers); ++size_) std::thread([this, id = size_.load()] { serve(id); }).detach();
    } catch (const std::system_error&) {
    }
  }

  // Claims and runs items of this generation until none is left.
  void work(uint32_t generation) {
    uint64_t seen = ticket_.load(std::memory_order_acquire);
    while (uint32_t(seen >> 32) == generation && uint32_t(seen) > 0) {
      // The fields belong to this generation if the exchange succeeds: the caller waits for every claimed item.
      const auto body = body_.load(std::memory_order_relaxed);
      void* const data = data_.load(std::memory_order_relaxed);
      const int64_t item = count_.load(std::memory_order_relaxed) - int64_t(uint32_t(seen));
      if (!ticket_.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      try {
        body(data, item);
      } catch (...) {
        if (!failed_.exchange(true, std::memory_order_relaxed)) failure_ = std::current_exception();
      }
      done_.fetch_add(1, std::memory_order_seq_cst);
      if (awaited_.load(std::memory_order_seq_cst)) wake(done_, 1);
      seen = ticket_.load(std::memory_order_acquire);
    }
  }

  void serve(int id) {
    uint32_t seen = 0;
    seat = id + 1;
    for (;;) {
      for (int spins = 1; call_.load(std::memory_order_acquire) == seen && spins <= kSpins; ++spins) {
        if ((spins == kPatience || spins == kSpins) && waits()) places_.change(id + 1, size_ + 1);
        PAGODA_PAUSE();
      }
      while (call_.load(std::memory_order_seq_cst) == seen) {
        sleeping_.fetch_add(1, std::memory_order_seq_cst);
        sleep_while(call_, seen);
        sleeping_.fetch_sub(1, std::memory_order_seq_cst);
      }
      seen = call_.load(std::memory_order_acquire);
      if (id >= seats_.load(std::memory_order_relaxed)) continue;
      places_.take(id + 1);
      work(seen);
      places_.leave(id + 1);
    }
  }

  // Whether items of the job under way are not done.
  bool waits() const { return done_.load(std::memory_order_relaxed) < uint64_t(count_.load(std::memory_order_relaxed)); }

  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<uint32_t> done_{0};
  std::atomic<uint32_t> awaited_{0};
  alignas(64) std::atomic<uint32_t> call_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<int> seats_{0};
  std::atomic<void (*)(void*, int64_t)> body_{nullptr};
  std::atomic<void*> data_{nullptr};
  std::atomic<int64_t> count_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;  // what the first item that threw threw; read when all are done
  uint32_t generation_ = 0;
  std::atomic<int> size_{0};
  Places places_;
};

Pool& pool() {
  static Pool* const one = [] {  // never destroyed: its workers outlive static destructors
    static Pool* made = new Pool;
    pthread_atfork(nullptr, nullptr, [] { made->forget(); });
    return made;
  }();
  return *one;
}

thread_local bool inside = false;  // of a job, as caller

struct Inside {
  Inside() { inside = true; }
  ~Inside() { inside = false; }
};

}  // namespace

void run_parallel(int64_t count, int num_threads, void (*body)(void*, int64_t), void* data) {
  const int threads = static_cast<int>(std::min<int64_t>({int64_t{num_threads}, count, kMaxWorkers + 1}));
  if (threads > 1 && count < (int64_t{1} << 32) && !inside) {
    const std::unique_lock<std::mutex> lock(pool().owner, std::try_to_lock);
    if (lock.owns_lock()) {
      const Inside here;
      pool().run(count, threads, body, data);
      return;
    }
  }
  const Seated nowhere(-1);
  for (int64_t item = 0; item < count; ++item) body(data, item);
}

int parallel_seat(int otherwise) { return seat < 0 ? otherwise : seat; }

int num_workers() { return pool().size(); }

}  // namespace pagoda
