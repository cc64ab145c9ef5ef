// Rows of a page as numbers: what each way of storing elements (page_shape.hpp) means. int8 and fp8 codes are widened as they
// are; their scale, one a slot, is multiplied into scores and probabilities instead. int4 has scales by group and is decoded.
#pragma once

#include "page_shape.hpp"
#include "small_floats.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

inline float half_to_float(uint16_t bits) {
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#else
  return half_value(bits);
#endif
}

inline uint16_t float_to_half(float value) {  // to nearest, ties to even
#if defined(__F16C__)
  return _cvtss_sh(value, 0);
#else
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return sign | 0x7e00u;
  if (bits >= 0x477ff000u) return sign | 0x7c00u;  // rounds to 65536 or more
  if (bits < 0x38800000u) {                        // below 2^-14: a multiple of 2^-24
    memcpy(&value, &bits, 4);
    value += 0.5f;  // the addition rounds at 2^-24
    memcpy(&bits, &value, 4);
    return sign | uint16_t(bits - 0x3f000000u);
  }
  bits += 0xfffu + ((bits >> 13) & 1u);
  return sign | uint16_t((bits - (112u << 23)) >> 13);
#endif
}

// Calls act(group, first column, columns) for the groups of an int4 row.
template <typename Act>
inline void each_int4_group(int64_t dim, Act act) {
  for (int64_t first = 0, g = 0; first < dim; first += kInt4Group, ++g)
    act(g, first, dim - first < kInt4Group ? dim - first : kInt4Group);
}

// A number of six bits (sign, two of exponent, three of mantissa: e2m3), from four bits and two: in 0 ... 7.5.
inline float e2m3_value(unsigned low, unsigned high) {
  const unsigned size = low | (high & 1u) << 4;
  const float value = size < 16 ? 0.125f * float(size) : size < 24 ? 0.25f * float(size - 8) : 0.5f * float(size - 16);
  return high & 2u ? -value : value;
}

// A short group of an int4 row: the lower four bits of its codes lie as others' codes, the upper two behind them.
inline void widen_short(const uint8_t* codes, uint16_t scale, int64_t columns, float* out) {
  const int64_t half = (columns + 1) / 2;
  const float unit = widen(scale);
  for (int64_t i = 0; i < columns; ++i) {
    const unsigned low = i < half ? codes[i] & 15u : codes[i - half] >> 4;
    out[i] = e2m3_value(low, codes[half + i / 4] >> 2 * (i % 4) & 3u) * unit;
  }
}

inline void widen_int4(const uint8_t* codes, const uint16_t* scales, int64_t dim, float* out) {
  each_int4_group(dim, [&](int64_t g, int64_t first, int64_t here) {
    const uint8_t* in = codes + g * (kInt4Group / 2);
    if (here <= kInt4Short) return widen_short(in, scales[2 * g], here, out + first);
    const float unit = widen(scales[2 * g]), least = widen(scales[2 * g + 1]);
    const int64_t half = (here + 1) / 2;
    for (int64_t i = 0; i < half; ++i) out[first + i] = fused(float(in[i] & 15u), unit, least);
    for (int64_t i = half; i < here; ++i) out[first + i] = fused(float(in[i - half] >> 4), unit, least);
  });
}

inline void widen_row(Store store, const char* row, const char* scales, int64_t dim, float* out) {
  switch (store) {
    case Store::f32:
      memcpy(out, row, 4 * dim);
      return;
    case Store::bf16: {
      const uint16_t* in = (const uint16_t*)row;
      int64_t d = 0;
      for (; d + kLanes <= dim; d += kLanes) pagoda::store(out + d, load(in + d));
      for (; d < dim; ++d) out[d] = widen(in[d]);
      return;
    }
    case Store::f16: {
      const uint16_t* in = (const uint16_t*)row;
      int64_t d = 0;
#if defined(__AVX512F__)
      for (; d + 16 <= dim; d += 16) _mm512_storeu_ps(out + d, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(in + d))));
#elif defined(__F16C__)
      for (; d + 8 <= dim; d += 8) _mm256_storeu_ps(out + d, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(in + d))));
#endif
      for (; d < dim; ++d) out[d] = half_to_float(in[d]);
      return;
    }
    case Store::int8:
      for (int64_t d = 0; d < dim; ++d) out[d] = float(((const int8_t*)row)[d]);
      return;
    case Store::fp8:
      for (int64_t d = 0; d < dim; ++d) out[d] = e4m3_value(((const uint8_t*)row)[d]);
      return;
    case Store::int4:
      return widen_int4((const uint8_t*)row, (const uint16_t*)scales, dim, out);
    case Store::pages: return;  // which have no rows
  }
}

// The numbers that a row stands for: as `widen_row`, its scale multiplied in.
inline void read_row(Store store, const char* row, const char* scales, int64_t dim, float* out) {
  widen_row(store, row, scales, dim, out);
  if (store != Store::int8 && store != Store::fp8) return;
  const float unit = widen(*(const uint16_t*)scales);
  for (int64_t d = 0; d < dim; ++d) out[d] *= unit;
}

#if PAGODA_DPBF16

// Rows of codes, `count` of them, each to `stride` numbers further in `out`, up to the next multiple of 64; calls before(row)
// first. 64 codes become 64 numbers by two looks into 128 bytes each (seven instructions; widening by arithmetic takes 24).
// The tables stay in registers from row to row.
template <bool kSigned, typename Before>  // the sign is a two's complement's, else the highest bit
inline void widen_codes(const CodeTable& table, const char* const* rows, int count, int64_t dim, uint16_t* out, int64_t stride,
                        Before before) {
  const __m512i low0 = _mm512_load_si512(table.low), low1 = _mm512_load_si512(table.low + 64);
  const __m512i high0 = _mm512_load_si512(table.high), high1 = _mm512_load_si512(table.high + 64);
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);  // so that unpacking by quarters keeps columns in order
  const __mmask64 rest = dim % 64 ? (__mmask64{1} << dim % 64) - 1 : ~__mmask64{0};
  for (int row = 0; row < count; ++row, out += stride) {
    before(row);
    for (int64_t d = 0; d < dim; d += 64) {
      const __m512i x = _mm512_permutexvar_epi64(order, _mm512_maskz_loadu_epi8(dim - d < 64 ? rest : ~__mmask64{0}, rows[row] + d));
      const __m512i sign = _mm512_and_si512(x, _mm512_set1_epi8(char(0x80))), index = kSigned ? _mm512_abs_epi8(x) : x;
      const __m512i low = _mm512_permutex2var_epi8(low0, index, low1);
      const __m512i high = _mm512_or_si512(_mm512_permutex2var_epi8(high0, index, high1), sign);
      _mm512_storeu_si512(out + d, _mm512_unpacklo_epi8(low, high));
      _mm512_storeu_si512(out + d + 32, _mm512_unpackhi_epi8(low, high));
    }
  }
}

// A group's sixteen possible numbers are a table; its codes pick from it.
inline void widen_int4(const uint8_t* codes, const uint16_t* scales, int64_t dim, uint16_t* out) {
  const Vec steps = (Vec)_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  each_int4_group(dim, [&](int64_t g, int64_t first, int64_t here) {
    if (here <= kInt4Short) {
      alignas(32) float wide[kInt4Short] = {};
      widen_short(codes + g * (kInt4Group / 2), scales[2 * g], here, wide);
      return _mm_storeu_si128((__m128i*)(out + first), (__m128i)_mm256_cvtneps_pbh(_mm256_load_ps(wide)));
    }
    const __m256i numbers = (__m256i)_mm512_cvtneps_pbh((__m512)fused(steps, widen(scales[2 * g]), widen(scales[2 * g + 1])));
    const int64_t half = (here + 1) / 2;
    const __m128i bytes = _mm_maskz_loadu_epi8(__mmask16((1u << half) - 1), codes + g * (kInt4Group / 2));
    const __m256i words = _mm256_cvtepu8_epi16(bytes);  // the index's upper bits do not count
    _mm256_storeu_si256((__m256i*)(out + first), _mm256_permutexvar_epi16(words, numbers));
    _mm256_storeu_si256((__m256i*)(out + first + half), _mm256_permutexvar_epi16(_mm256_srli_epi16(words, 4), numbers));
  });
}

// Rows as bfloat16, `stride` numbers apart in `out`, where there is room for whole multiples of 64. Numbers behind the last
// column are anything.
template <typename Before>
inline void widen_rows(Store store, const char* const* rows, const char* const* scales, int count, int64_t dim, uint16_t* out,
                       int64_t stride, Before before) {
  if (store == Store::int8) return widen_codes<true>(kInt8Table, rows, count, dim, out, stride, before);
  if (store == Store::fp8) return widen_codes<false>(kFp8Table, rows, count, dim, out, stride, before);
  for (int row = 0; row < count; ++row, out += stride) {
    before(row);
    if (store == Store::int4) widen_int4((const uint8_t*)rows[row], (const uint16_t*)scales[row], dim, out);
    else memcpy(out, rows[row], 2 * dim);  // bfloat16
  }
}

#endif

// The same as floats.
template <typename Before>
inline void widen_rows(Store store, const char* const* rows, const char* const* scales, int count, int64_t dim, float* out,
                       int64_t stride, Before before) {
  for (int row = 0; row < count; ++row, out += stride) {
    before(row);
    widen_row(store, rows[row], scales[row], dim, out);
  }
}

}  // namespace
}  // namespace pagoda
