// What the lanes of some registers come to, all of them at once, for one instruction set.
#pragma once

#include "vec.hpp"

namespace pagoda {
namespace {

constexpr auto plus = [](auto a, auto b) { return a + b; };
constexpr auto larger = [](auto a, auto b) { return b > a ? b : a; };

constexpr int kHeadsTogether = 8;

// To `out` [2 kHeadsTogether], head by head: what all lanes of its register come to, sums in the order of total_of(). One register after the
// other takes three times as many instructions, each of which waits for the one before.
template <int kHeads, typename Join>
inline void store_across(const Vec (&x)[kHeads], Join join, float* out) {
#if defined(__AVX512F__)
  // Four registers become one, a quarter each, and two of these the totals, which lie in turns.
  const auto four = [&](int i) {
    const auto at = [&](int n) { return (__m512)x[n < kHeads ? n : kHeads - 1]; };
    const __m512 a = at(i), b = at(i + 1), c = at(i + 2), d = at(i + 3);
    const Vec ab = join((Vec)_mm512_shuffle_f32x4(a, b, 0x44), (Vec)_mm512_shuffle_f32x4(a, b, 0xee));
    const Vec cd = join((Vec)_mm512_shuffle_f32x4(c, d, 0x44), (Vec)_mm512_shuffle_f32x4(c, d, 0xee));
    const Vec all = join((Vec)_mm512_shuffle_f32x4((__m512)ab, (__m512)cd, 0x88), (Vec)_mm512_shuffle_f32x4((__m512)ab, (__m512)cd, 0xdd));
    return join(all, (Vec)_mm512_permute_ps((__m512)all, 0x4e));
  };
  const __m512 both = _mm512_unpacklo_ps((__m512)four(0), (__m512)four(kHeads > 4 ? 4 : 0));
  const __m512i in_turns = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  store(out, (Vec)_mm512_permutexvar_ps(in_turns, (__m512)join((Vec)both, (Vec)_mm512_permute_ps(both, 0x4e))));
#else
  for (int h = 0; h < kHeads; ++h) {
    float lanes[kLanes];
    store(lanes, x[h]);
    for (int i = 1; i < kLanes; ++i) lanes[0] = join(lanes[0], lanes[i]);
    out[h] = lanes[0];
  }
  for (int h = kHeads; h < kHeadsTogether; ++h) out[h] = 0.0f;
#endif
}

}  // namespace
}  // namespace pagoda
