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

#if defined(__AVX512F__)

// The places of the `keep` largest of at most 64 keys, of which `least` is the last one. In one look at them all.
inline void places_of_few(const int32_t* keys, int64_t count, int32_t least, int64_t keep, int32_t* out) {
  const __m512i limit = _mm512_set1_epi32(least);
  uint64_t taken = 0, equal = 0;
  for (int64_t i = 0; i < count; i += kLanes) {
    const __m512i some = _mm512_loadu_si512(keys + i);
    taken |= uint64_t{_mm512_cmpgt_epi32_mask(some, limit)} << i, equal |= uint64_t{_mm512_cmpeq_epi32_mask(some, limit)} << i;
  }
  int64_t equals = keep - __builtin_popcountll(taken);
  if (equals == __builtin_popcountll(equal)) taken |= equal;
  else for (; equals > 0; equal &= equal - 1, --equals) taken |= equal & -equal;
  __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int64_t i = 0; i < count; i += kLanes, place = _mm512_add_epi32(place, _mm512_set1_epi32(kLanes))) {
    const auto some = __mmask16(taken >> i);
    _mm512_mask_compressstoreu_epi32(out, some, place);
    out += __builtin_popcount(some);
  }
}

#endif

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

#if defined(__AVX512F__)

// ---- the sixteen largest of 64, in registers: a bitonic network, half as long as finding the limit bit by bit -------------------

// The lane that lane i meets is i ^ kApart.
template <int kApart>
inline __m512i apart(__m512i x) {
  if (kApart == 1) return _mm512_shuffle_epi32(x, _MM_PERM_ENUM(0xb1));
  if (kApart == 2) return _mm512_shuffle_epi32(x, _MM_PERM_ENUM(0x4e));
  return kApart == 4 ? _mm512_shuffle_i32x4(x, x, 0xb1) : _mm512_shuffle_i32x4(x, x, 0x4e);
}

// Lanes that keep the larger of two keys where runs of kRun become sorted, the first of them falling.
constexpr uint32_t keep_larger(int run, int apart, bool falling) {
  uint32_t lanes = 0;
  for (int i = 0; i < 16; ++i) lanes |= uint32_t((((i & apart) == 0) == ((i & run) == 0)) == falling) << i;
  return lanes;
}

template <int kRun, int kApart, bool kFalling>
inline __m512i meet(__m512i x) {
  const __m512i other = apart<kApart>(x);
  return _mm512_mask_max_epi32(_mm512_min_epi32(x, other), __mmask16(keep_larger(kRun, kApart, kFalling)), x, other);
}

// Sorted, of lanes that rise and then fall, or fall and then rise.
template <bool kFalling>
inline __m512i sorted_runs(__m512i x) {
  return meet<16, 1, kFalling>(meet<16, 2, kFalling>(meet<16, 4, kFalling>(meet<16, 8, kFalling>(x))));
}

// Two sorted falling, two rising, step by step together: none waits for itself.
template <int kRun, int kApart>
inline void meet_four(__m512i (&x)[4]) {
  x[0] = meet<kRun, kApart, true>(x[0]), x[1] = meet<kRun, kApart, false>(x[1]);
  x[2] = meet<kRun, kApart, true>(x[2]), x[3] = meet<kRun, kApart, false>(x[3]);
}

// The `keep`th largest (1 … kLanes) of at most 64 keys, more than kLanes.
inline int32_t largest_in_registers(const int32_t* keys, int64_t count, int64_t keep) {
  const auto some = [&](int64_t i) { return i < count ? _mm512_loadu_si512(keys + i) : _mm512_set1_epi32(-0x7fffffff - 1); };
  __m512i x[4] = {some(0), some(kLanes), some(2 * kLanes), some(3 * kLanes)};
  meet_four<2, 1>(x);
  meet_four<4, 2>(x), meet_four<4, 1>(x);
  meet_four<8, 4>(x), meet_four<8, 2>(x), meet_four<8, 1>(x);
  meet_four<16, 8>(x), meet_four<16, 4>(x), meet_four<16, 2>(x), meet_four<16, 1>(x);
  const __m512i first = sorted_runs<true>(_mm512_max_epi32(x[0], x[1])), second = sorted_runs<false>(_mm512_max_epi32(x[2], x[3]));
  const __m512i best = sorted_runs<true>(_mm512_max_epi32(first, second));
  return _mm512_cvtsi512_si32(_mm512_maskz_compress_epi32(__mmask16(1u << (keep - 1)), best));
}

#endif

// The places of the `keep` (1 … count) largest keys to `out` [keep + 1], in ascending order; of equals the earlier. Where they are many the
// limit is found bit by bit from the highest, in a pass over all keys each; of 64 in registers. No branch depends on a key: sorting by comparisons
// mispredicts a third of them, and 51 of 512 took three times as long.
inline void largest_keys(const int32_t* keys, int64_t count, int64_t keep, int32_t* out) {
#if defined(__AVX512F__)
  if (keep <= kLanes && count > kLanes && count <= 64) return places_of_few(keys, count, largest_in_registers(keys, count, keep), keep, out);
#endif
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
