#include "parallel.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>

namespace pagoda {

namespace {

// libgomp's entry behind `#pragma omp parallel` (its stable ABI). torch loads its own copy of libgomp under a hashed name
// and globally; linking another would put a second pool of spinning threads on the same cores.
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

GompParallel gomp_parallel() {
  static const auto entry = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return entry;
}

struct Shared {
  const std::function<void(int64_t)>& body;
  int64_t count;
  std::atomic<int64_t> next{0};
};

void drain(void* data) {
  auto& shared = *static_cast<Shared*>(data);
  for (int64_t item; (item = shared.next.fetch_add(1, std::memory_order_relaxed)) < shared.count;) shared.body(item);
}

}  // namespace

void parallel_for(int64_t count, int num_threads, const std::function<void(int64_t)>& body) {
  Shared shared{body, count};
  const auto threads = static_cast<unsigned>(std::min<int64_t>(num_threads, count));
  if (threads > 1 && gomp_parallel() != nullptr) {
    gomp_parallel()(drain, &shared, threads, 0);
  } else {
    drain(&shared);
  }
}

const char* threading() { return gomp_parallel() != nullptr ? "openmp" : "single"; }

}  // namespace pagoda
