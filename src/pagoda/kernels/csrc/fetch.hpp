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

}  // namespace
}  // namespace pagoda
