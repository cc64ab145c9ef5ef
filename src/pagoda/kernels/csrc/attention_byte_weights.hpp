// Weights as bytes, for products of bytes (attention_bytes.hpp). The logits of a row in a block are weighed beside one reference R,
// the largest of logit + log2(scale of the slot's V), which may be a little too large:
//
//   p = 2^(logit - R)     denominator += p     byte = p * scale of V * 255: no more than 255, and nearly that for the largest
//
// so bytes come out of one pass, and what a block's sums weigh beside those before is one step for eight rows together.
#pragma once

#include "attention_math.hpp"
#include "attention_slots.hpp"

namespace pagoda {
namespace {

constexpr int kFewRows = PAGODA_DPBF16 ? 8 : 0;  // rows that are multiplied with slots where they lie

#if PAGODA_DPBF16

// bfloat16 numbers as floats, then zeros up to the next whole register.
inline void widen_scales(const uint16_t* scales, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 there = __mmask16(count - i < kLanes ? (1u << (count - i)) - 1 : 0xffffu);
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, scales + i));
    _mm512_storeu_si512(out + i, _mm512_slli_epi32(bits, 16));
  }
}

// The scales of a block's values, as weighing wants them.
struct ByteScales {
  alignas(64) float logs[kBlock];   // at least log2(scale), by 0.0015 at most
  alignas(64) float units[kBlock];  // 255 scale
  float broken;                     // 0, or not a number where a scale is none

  // `scales`: zeros behind the last slot's. Those so small that 2^-logs would overflow are
  // taken for larger ones: their weights round to 0 all the same.
  void prepare(const float* scales, int64_t lanes) {
    Vec all{}, most{};
    for (int64_t i = 0; i < lanes; i += kLanes) {
      const Vec scale = load(scales + i);
      all += scale, most = maximum(scale, most);
      store(units + i, scale * 255.0f);
    }
    const float sum = total_of(all), high = largest(most);
    broken = sum - sum;
    const Vec least = splat(high > 1e-20f ? high * 1e-12f : 1e-32f);
    for (int64_t i = 0; i < lanes; i += kLanes) {  // a cubic of the mantissa, within 7.3e-4 of its logarithm
      const Vec scale = maximum(load(scales + i), least);
      const Vec m = (Vec)_mm512_getmant_ps((__m512)scale, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero);
      const Vec log = fused(fused(fused(m, 0.155445855f, -1.03925816f), m, 3.02947821f), m, 7.4e-4f - 2.14494063f);
      store(logs + i, (Vec)_mm512_getexp_ps((__m512)scale) + log);
    }
  }
};

// Lane r of the result is what both(x, y) makes of all lanes of rows[r], r < 8; the lanes from 8 on repeat some.
template <typename Both>
inline Vec each_row_of(const Vec (&rows)[kFewRows], Both both) {
  __m512 half[4], quarter[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 x = (__m512)rows[2 * i], y = (__m512)rows[2 * i + 1];
    half[i] = (__m512)both((Vec)_mm512_shuffle_f32x4(x, y, 0x44), (Vec)_mm512_shuffle_f32x4(x, y, 0xee));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    quarter[i] = (__m512)both((Vec)_mm512_shuffle_f32x4(half[2 * i], half[2 * i + 1], 0x88),
                              (Vec)_mm512_shuffle_f32x4(half[2 * i], half[2 * i + 1], 0xdd));
  const Vec pairs = both((Vec)_mm512_unpacklo_ps(quarter[0], quarter[1]), (Vec)_mm512_unpackhi_ps(quarter[0], quarter[1]));
  const Vec each = both(pairs, (Vec)_mm512_permute_ps((__m512)pairs, 0x4e));  // in quarter i: row i, row 4 + i
  return (Vec)_mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 4, 8, 12, 1, 5, 9, 13), (__m512)each);
}

inline Vec largest_of_each(const Vec (&highs)[kFewRows]) {
  return each_row_of(highs, [](Vec x, Vec y) { return maximum(x, y); });
}

// Rows' references move by whole numbers, so by powers of two, which round nothing: parts may be added up where they are made (attention_tiled_parts.hpp).
inline Vec whole_above(Vec high) { return (Vec)_mm512_ceil_ps((__m512)high); }

// How up to eight rows go on from one block to the next.
struct ByteSteps {
  alignas(64) float references[16];  // of this block
  alignas(64) float before[16], now[16];  // factors of what was summed before, and of this block

  // `tops`: the rows' largest references so far, which move.
  void rise(const Vec (&highs)[kFewRows], int rows, float* tops) {
    const __mmask16 there = __mmask16((1u << rows) - 1);
    const Vec high = largest_of_each(highs), old = (Vec)_mm512_mask_loadu_ps((__m512)high, there, tops), top = maximum(old, whole_above(high));
    const Vec reference = select(high == splat(-kInf), Vec{}, high);  // nothing seen in this block: all weights are zeros
    _mm512_mask_storeu_ps(tops, there, (__m512)top);
    store(references, reference);
    const auto none = top == splat(-kInf);  // the row has seen no slot yet: nothing of nothing, where a difference is none
    store(before, select(none, Vec{}, exp2_of(old - top)));
    store(now, select(none, Vec{}, exp2_of(reference - top)));
  }
};

// Highest of logit * unit + logs for rows whose logits are all of `lanes` slots and unmasked: highs[row], lane by lane.
template <int kRows>
PAGODA_OWN_REGISTERS void find_highs(const float* logits, int64_t ldl, int64_t lanes, float unit, const float* logs, Vec* highs) {
  Vec high[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) high[r] = splat(-kInf);
  for (int64_t i = 0; i < lanes; i += kLanes) {
    const Vec log = load(logs + i);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) high[r] = maximum(fused(load(logits + r * ldl + i), unit, log), high[r]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) highs[r] = high[r];
}

// The lowest bytes of the words of four registers.
inline __m512i lowest_bytes(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i lane = _mm512_setr_epi32(0x0c080400, 0x1c181410, 0x2c282420, 0x3c383430, 0x4c484440, 0x5c585450, 0x6c686460, 0x7c787470,
                                         0x0c080400, 0x1c181410, 0x2c282420, 0x3c383430, 0x4c484440, 0x5c585450, 0x6c686460, 0x7c787470);
  return _mm512_mask_blend_epi32(0xff00, _mm512_permutex2var_epi8(a, lane, b), _mm512_permutex2var_epi8(c, lane, d));
}

// out[i] = the lowest byte of each(i), which are a register's words of sixteen slots from number i on.
template <typename Each>
inline void store_bytes(int64_t lanes, uint8_t* out, Each each) {
  constexpr int64_t kFour = 4 * kLanes;
  int64_t i = 0;
  if (lanes == kBlock) {  // nearly always: unrolled
#pragma GCC unroll 2
    for (; i < kBlock; i += kFour) {
      const __m512i a = each(i), b = each(i + kLanes), c = each(i + 2 * kLanes), d = each(i + 3 * kLanes);
      _mm512_storeu_si512(out + i, lowest_bytes(a, b, c, d));
    }
  }
  for (; i < lanes; i += kLanes) _mm_storeu_si128((__m128i*)(out + i), _mm512_cvtepi32_epi8(each(i)));
}

// A weight, at most 1, as a byte: the lowest of the result. 2^23 is added, where the distance of two numbers is 1.
inline __m512i byte_of(Vec p, Vec unit) { return (__m512i)fused(p, unit, 8388608.0f); }

// Bytes of a row's weights; returns the sum of its 2^(logit - reference), lane by lane. Masked slots' logits are -inf.
inline Vec weigh_bytes(const float* logits, int64_t lanes, float unit, float reference, const ByteScales& scales, uint8_t* out) {
  Vec sum{};
  store_bytes(lanes, out, [&](int64_t i) {
    const Vec p = Pairs::weight(fused_less(load(logits + i), splat(unit), splat(reference)));
    sum += p;
    return byte_of(p, load(scales.units + i));
  });
  return sum;
}

#endif

}  // namespace
}  // namespace pagoda
