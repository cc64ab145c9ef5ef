// Registers of a row, the last one cut short, and roundings to the model's dtype. Included in bodies only (see vec.hpp).
#pragma once

#include "vec.hpp"

namespace pagoda {
namespace {

// A register with `count` elements from p, the rest `fill`.
template <typename T>
inline Vec load_part(const T* p, int64_t count, float fill = 0.0f) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = i < count ? widen(p[i]) : fill;
  return load(lanes);
}

template <typename T>
inline void store_part(T* p, Vec x, int64_t count) {
  float lanes[kLanes];
  store(lanes, x);
  for (int i = 0; i < count; ++i) narrow(lanes[i], p + i);
}

// To the model's dtype and back: what the reference's own rounding between two operations does.
template <typename T>
inline Vec rounded(Vec x);
template <>
inline Vec rounded<float>(Vec x) { return x; }
template <>
inline Vec rounded<uint16_t>(Vec x) {
  const UintVec bits = (UintVec)x;
  const UintVec up = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  return select(x == x, (Vec)up, (Vec)(bits | 0x400000u));
}

// bfloat16 by twos: those at even and at odd places of a row, as they lie in words. Widening and narrowing two registers take four instructions so, in the
// row's order ten.
struct Twos {
  Vec even, odd;
};

inline Twos load_twos(const uint16_t* p) {
  UintVec words;
  memcpy(&words, p, sizeof words);
  return {(Vec)(words << 16), (Vec)(words & 0xffff0000u)};
}

// As rounded<uint16_t>, of what was computed from bfloat16: a number that is none has zeros in its lower half then and is quiet, so that it stays as it is.
inline Vec rounded_result(Vec x) {
  const UintVec bits = (UintVec)x;
  return (Vec)((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}

// Rounded so.
inline void store_twos(uint16_t* p, const Twos& x) {
  const UintVec words = (UintVec)rounded_result(x.odd) | (UintVec)rounded_result(x.even) >> 16;
  memcpy(p, &words, sizeof words);
}

// Lanes by halves, in this order whatever the row.
inline float total(Vec x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

inline Vec sigmoid(Vec x) {
  const Vec high = splat(87.0f), away = maximum(-high, -x);
  return splat(1.0f) / (splat(1.0f) + exponential(select(away > high, high, away)));
}

inline void store_as(float* p, Vec x) { store(p, x); }
inline void store_as(uint16_t* p, Vec x) {
  const HalfVec half = __builtin_convertvector((UintVec)rounded<uint16_t>(x) >> 16, HalfVec);
  memcpy(p, &half, sizeof half);
}

// Calls act(i, count) over a row of `width`, registers first, then what is left.
template <typename Act>
inline void sweep(int64_t first, int64_t end, Act act) {
  int64_t i = first;
  for (; i + kLanes <= end; i += kLanes) act(i, int64_t{kLanes});
  if (i < end) act(i, end - i);
}

template <typename T>
inline Vec take(const T* p, int64_t count) { return count == kLanes ? load(p) : load_part(p, count); }
template <typename T>
inline void put(T* p, Vec x, int64_t count) {
  if (count == kLanes) store_as(p, x);
  else store_part(p, x, count);
}

}  // namespace
}  // namespace pagoda
