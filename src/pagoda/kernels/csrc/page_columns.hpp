// Numbers of some channels, which lie channel by channel (Marks::columns), brought together four at a time, for one instruction set: so that
// they are multiplied as marks of bytes are.
//
//   columns  [channel][slot]      a a a a …    out  [four channels][64 slots][4]   abcd abcd abcd abcd …
//                                 b b b b …         float [64 slots]               scales
//                                 c c c c …
//                                 d d d d …
#pragma once

#include "page_scores.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

constexpr int64_t kTogether = 64;                   // slots: a line of a channel
constexpr int64_t kFourTogether = 4 * kTogether;    // bytes of four channels
constexpr int64_t kColumnsAhead = 8 * kTogether;    // bytes of each channel, of which more are read at once than the machine follows by itself

// Where the channels begin that a query looks at, to `at` [4 fours()]: behind the last one, where codes are zero, the first again.
inline void find_columns(const PageScoreArgs& a, const PreparedQueries& q, const char** at) {
  for (int64_t w = 0; w < 4 * q.fours(); ++w) {
    const int64_t i = w < q.width ? w : 0;
    at[w] = a.marks + (q.channels ? q.channels[i] : i) * a.room * a.rule.per_page;
  }
}

inline const char* column_of_scales(const PageScoreArgs& a) { return a.marks + a.rule.channels() * a.room * a.rule.per_page; }

// The scales of a register of slots, of which `slots` are there.
inline Vec scales_at(const uint8_t* bytes, int64_t slots) {
#if defined(__AVX512BW__)
  const __mmask16 some = slots < kLanes ? (1u << slots) - 1 : 0xffffu;
  const UintVec wide = (UintVec)_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(some, bytes));
#else
  UintVec wide{};
  for (int64_t i = 0; i < (slots < kLanes ? slots : kLanes); ++i) wide[i] = bytes[i];
#endif
  return (Vec)(wide + uint32_t(kScaleOfZero) << uint32_t(kScaleShift));
}

#if defined(__AVX512BW__)

// A line of each of four channels, `at` bytes behind where they begin.
inline void four_together(const char* const* columns, int64_t at, __mmask64 some, char* out) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);  // so that the fourth of a lane is the next lane's
  const auto line = [&](int i) { return _mm512_permutexvar_epi32(order, _mm512_maskz_loadu_epi8(some, columns[i] + at)); };
  const __m512i a = line(0), b = line(1), c = line(2), d = line(3);
  const __m512i ab = _mm512_unpacklo_epi8(a, b), cd = _mm512_unpacklo_epi8(c, d);
  const __m512i more_ab = _mm512_unpackhi_epi8(a, b), more_cd = _mm512_unpackhi_epi8(c, d);
  _mm512_storeu_si512(out, _mm512_unpacklo_epi16(ab, cd));
  _mm512_storeu_si512(out + 64, _mm512_unpackhi_epi16(ab, cd));
  _mm512_storeu_si512(out + 128, _mm512_unpacklo_epi16(more_ab, more_cd));
  _mm512_storeu_si512(out + 192, _mm512_unpackhi_epi16(more_ab, more_cd));
}

#endif

// `count` slots (at most kTogether) of `fours` times four columns, `at` bytes behind where these begin; what lies `ahead` bytes further on is
// asked for. out: [fours][kFourTogether], then float [kTogether].
inline void bring_together(const char* const* columns, int64_t fours, const char* column_of_scales, int64_t at, int64_t count, int64_t ahead,
                           char* out) {
  const auto* const scales = (const uint8_t*)column_of_scales + at;
  if (ahead) {
    for (int64_t w = 0; w < 4 * fours; ++w) __builtin_prefetch(columns[w] + at + ahead);
    __builtin_prefetch(scales + ahead);
  }
#if defined(__AVX512BW__)
  const __mmask64 some = ~uint64_t{0} >> (kTogether - count);
  for (int64_t i = 0; i < fours; ++i, out += kFourTogether) four_together(columns + 4 * i, at, some, out);
#else
  for (int64_t i = 0; i < fours; ++i, out += kFourTogether)
    for (int64_t w = 0; w < 4; ++w)
      for (int64_t slot = 0; slot < count; ++slot) out[4 * slot + w] = columns[4 * i + w][at + slot];
#endif
  for (int64_t slot = 0; slot < count; slot += kLanes) store((float*)out + slot, scales_at(scales + slot, count - slot));
}

// The first numbers of each channel that is read, which no other number's asking reaches.
inline void fetch_columns(const char* const* columns, int64_t fours, const char* column_of_scales, int64_t count) {
  for (int64_t i = 0; i < (count < kColumnsAhead ? count : kColumnsAhead); i += 64) {
    for (int64_t w = 0; w < 4 * fours; ++w) __builtin_prefetch(columns[w] + i);
    __builtin_prefetch(column_of_scales + i);
  }
}

}  // namespace
}  // namespace pagoda
