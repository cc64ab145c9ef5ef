// The largest of some numbers, for one instruction set.
#pragma once

#include "vec.hpp"

namespace pagoda {
namespace {

constexpr int64_t kFewKeys = kLanes == 16 ? 32 : 64;  // each of which is compared with each of the others

// Integers in the order of the floats; -0 is 0, and NaN the lowest.
inline IntVec ordered(Vec x) {
  const IntVec bits = (IntVec)(select(x == x, x, splat(-kInf)) + splat(0.0f));
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

inline IntVec load(const int32_t* p) {
  IntVec x;
  memcpy(&x, p, sizeof x);
  return x;
}

inline void store(int32_t* p, IntVec x) { memcpy(p, &x, sizeof x); }

// keys [a multiple of kLanes]: the numbers' order; behind them the least there is.
inline void order(const float* numbers, int64_t count, int32_t* keys) {
  constexpr int32_t kLeast = -0x7fffffff - 1;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(keys + i, ordered(load(numbers + i)));
  if (i == count) return;
  store(keys + i, ordered(load_some(numbers + i, count - i)));
  for (int64_t rest = count; rest < i + kLanes; ++rest) keys[rest] = kLeast;
}

// How many keys are at least `limit`, which is not the least there is.
inline int64_t count_from(const int32_t* keys, int64_t count, int32_t limit) {
  int64_t total = 0;
#if defined(__AVX512F__)
  const __m512i least = _mm512_set1_epi32(limit);
  for (int64_t i = 0; i < count; i += kLanes) total += __builtin_popcount(_mm512_cmpge_epi32_mask(_mm512_loadu_si512(keys + i), least));
#else
  IntVec found{};
  for (int64_t i = 0; i < count; i += kLanes) found -= load(keys + i) >= limit;
  for (int i = 0; i < kLanes; ++i) total += found[i];
#endif
  return total;
}

// Of at most kFewKeys: those before which fewer than `keep` others go.
inline void largest_of_few(const int32_t* keys, int64_t count, int64_t keep, int32_t* out) {
  IntVec lane{};
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  int32_t ranks[kFewKeys];
  for (int64_t at = 0; at < count; at += kLanes) {
    const IntVec mine = load(keys + at);
    const int64_t end = at + kLanes < count ? at + kLanes : count;
    IntVec rank{};
    for (int64_t i = 0; i < at; ++i) rank -= mine <= keys[i];  // -1 where it holds
    for (int64_t i = at; i < end; ++i) rank -= (mine < keys[i]) | ((mine == keys[i]) & (lane > int32_t(i - at)));
    for (int64_t i = end; i < count; ++i) rank -= mine < keys[i];
    store(ranks + at, rank);
  }
#if defined(__AVX512F__)
  for (int64_t at = 0; at < count; at += kLanes) {  // behind the last key no rank is below `count`
    const __mmask16 some = _mm512_cmplt_epi32_mask((__m512i)load(ranks + at), _mm512_set1_epi32(int32_t(keep)));
    _mm512_mask_compressstoreu_epi32(out, some, (__m512i)(lane + int32_t(at)));
    out += __builtin_popcount(some);
  }
#else
  for (int64_t i = 0, n = 0; i < count && n < keep; ++i) out[n] = int32_t(i), n += ranks[i] < keep;
#endif
}

// The places of the keys above `least`, and of the first `equals` that are equal to it, to `out`; there is room for one more.
inline void places_from(const int32_t* keys, int64_t count, int32_t least, int64_t equals, int32_t* out) {
#if defined(__AVX512F__)
  const __m512i limit = _mm512_set1_epi32(least);
  __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int64_t i = 0; i < count; i += kLanes, place = _mm512_add_epi32(place, _mm512_set1_epi32(kLanes))) {
    const __m512i some = _mm512_loadu_si512(keys + i);
    uint32_t equal = _mm512_cmpeq_epi32_mask(some, limit), taken = 0;
    for (; equal && equals > 0; equal &= equal - 1, --equals) taken |= equal & -equal;
    const auto mask = __mmask16(_mm512_cmpgt_epi32_mask(some, limit) | taken);
    _mm512_mask_compressstoreu_epi32(out, mask, place);
    out += __builtin_popcount(mask);
  }
#else
  for (int64_t i = 0, n = 0; i < count; ++i) {
    const int64_t equal = keys[i] == least;
    out[n] = int32_t(i);
    n += (keys[i] > least) | (equal & int64_t{equals > 0});
    equals -= equal;
  }
#endif
}

// The places of the `keep` (1 … count) largest keys to `out` [keep + 1], in ascending order; of equals the earlier. Where they are many the
// limit is found bit by bit from the highest, in a pass over all keys each. No branch depends on a key: sorting by comparisons
// mispredicts a third of them, and 51 of 512 took three times as long.
inline void largest_keys(const int32_t* keys, int64_t count, int64_t keep, int32_t* out) {
  if (count <= kFewKeys) return largest_of_few(keys, count, keep, out);
  uint32_t limit = 0;  // of keys with the sign's bit turned
  int64_t above = 0;
  for (uint32_t bit = 1u << 31; bit; bit >>= 1) {
    const int64_t found = count_from(keys, count, int32_t((limit | bit) ^ (1u << 31)));
    if (found >= keep) limit |= bit;
    if (found == keep) break;
  }
  const int32_t least = int32_t(limit ^ (1u << 31));
  if (least < 0x7fffffff) above = count_from(keys, count, least + 1);
  places_from(keys, count, least, keep - above, out);
}

}  // namespace
}  // namespace pagoda
