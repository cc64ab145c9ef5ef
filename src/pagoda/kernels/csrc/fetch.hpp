// Memory that is about to be read is asked for while something else is done: pages lie anywhere, and the hardware fetches ahead only
// within one.
#pragma once

#include <cstdint>

namespace pagoda {
namespace {

inline void fetch(const void* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(from) + at);
}

// Into the second cache, which holds more of what is not needed at once.
inline void fetch_second(const void* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(from) + at, 0, 2);
}

// A line, into the first cache, by an instruction that g++ 12 neither drops nor moves: it takes a function that does nothing but prefetch for one
// that does nothing.
inline void ask_first(const void* line) {
#if defined(__x86_64__)
  __asm__ volatile("prefetcht0 %0" : : "m"(*static_cast<const char*>(line)));
#else
  __builtin_prefetch(line);
#endif
}

}  // namespace
}  // namespace pagoda
