// Work shared among threads: one pool that owns the decode path.
//
// The caller works too, and takes whatever its workers do not: an item is claimed one at a time, so a worker that the
// system runs late (a busy neighbour) costs the item that it holds and nothing else, and who waits for it changes places with it
// (places.hpp). Workers spin for a moment after a job, since the next one of the same step is microseconds away, then sleep.
#pragma once

#include <cstdint>
#include <type_traits>

namespace pagoda {

// Calls body(data, item) for every item in 0..count, each exactly once, on up to num_threads threads, and returns when all
// are done. Which thread takes which item is open, so a body writes only what belongs to its item. What the first item that throws
// throws is thrown here, once all the others are done.
// A call from inside a body, or while another thread's job runs, is done by the caller alone.
void run_parallel(int64_t count, int num_threads, void (*body)(void*, int64_t), void* data);

template <typename Body>
void parallel_for(int64_t count, int num_threads, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  run_parallel(count, num_threads, [](void* data, int64_t item) { (*static_cast<Plain*>(data))(item); },
               const_cast<void*>(static_cast<const void*>(&body)));
}

// The calling thread's number among those of the job that it works for, the same from job to job, or `otherwise` where it works for none, as in a
// job within a job. What a thread wrote or asked for is in its own core's cache, so who has a choice takes the share of that number.
int parallel_seat(int otherwise);

// Threads that exist now beside their callers (they are started by the first job that has use for them).
int num_workers();

}  // namespace pagoda
