// Work shared among threads, without a second thread pool: torch's OpenMP runtime is borrowed when the process has one.
#pragma once

#include <cstdint>
#include <functional>

namespace pagoda {

// Calls body(item) for every item in 0..count, each exactly once, on up to num_threads threads. Which thread takes which
// item is open, so a body writes only what belongs to its item. body must not throw.
void parallel_for(int64_t count, int num_threads, const std::function<void(int64_t)>& body);

// "openmp" when threads can be had, else "single".
const char* threading();

}  // namespace pagoda
