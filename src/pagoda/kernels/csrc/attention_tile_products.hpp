// Products of sixteen rows of words (pairs of bfloat16, four bytes) by AMX.
#pragma once

#include <cstdint>

namespace pagoda {
namespace {

// g++ 12's intrinsics take no tile that is a template's argument, and do not say that they read memory.
template <int kTile>
inline void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

template <int kTile>
inline void load_tile(const float* at, int64_t words) {  // from one row to the next
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(at), "r"(4 * words), "i"(kTile) : "memory");
}

template <int kTile>
inline void store_tile(float* at, int64_t words) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(at), "r"(4 * words), "i"(kTile) : "memory");
}

template <int kTo, int kA, int kB>
inline void add_pairs() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kTo), "i"(kA), "i"(kB));
}

// Of bytes, A signed or not and B signed.
template <int kTo, int kA, int kB>
inline void add_signed() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kTo), "i"(kA), "i"(kB));
}

template <int kTo, int kA, int kB>
inline void add_unsigned() {
  __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kTo), "i"(kA), "i"(kB));
}

// A signed, B not.
template <int kTo, int kA, int kB>
inline void add_signed_unsigned() {
  __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kTo), "i"(kA), "i"(kB));
}

}  // namespace
}  // namespace pagoda
