// Numbers of some channels, which lie channel by channel (Marks::columns), brought together four at a time, for one instruction set: so that
// they are multiplied as marks of bytes are.
//
//   columns  [channel][slots 0 and 8, 1 and 9, …]      out  [four channels][64 slots][4]   abcd abcd abcd abcd …
//            aa aa aa aa aa aa aa aa   the next 16 …         float [64 slots]               scales
//            bb bb bb bb bb bb bb bb
//            cc cc cc cc cc cc cc cc
//            dd dd dd dd dd dd dd dd
#pragma once

#include "page_scores.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

constexpr int64_t kTogether = 64;                   // slots: half a line of a channel
constexpr int64_t kFourTogether = 4 * kTogether;    // bytes of four channels
constexpr int64_t kColumnsAhead = 8 * kTogether;    // bytes of each channel, of which more are read at once than the machine follows by itself

inline int64_t column_bytes(const PageScoreArgs& a) { return a.room * a.rule.per_page / 2; }

// Where the channels begin that a query looks at, to `at` [4 fours()]: behind the last one, where codes are zero, the first again.
inline void find_columns(const PageScoreArgs& a, const PreparedQueries& q, const char** at) {
  for (int64_t w = 0; w < 4 * q.fours(); ++w) {
    const int64_t i = w < q.width ? w : 0;
    at[w] = a.marks + (q.channels ? q.channels[i] : i) * column_bytes(a);
  }
}

inline const char* column_of_scales(const PageScoreArgs& a) { return a.marks + a.rule.channels() * column_bytes(a); }

inline Vec scales_of(UintVec bytes) { return (Vec)((bytes + uint32_t(kScaleOfZero)) << uint32_t(kScaleShift)); }

// The scales of a register of slots, of which `slots` are there.
inline Vec scales_at(const uint8_t* bytes, int64_t slots) {
#if defined(__AVX512BW__)
  const __mmask16 some = slots < kLanes ? (1u << slots) - 1 : 0xffffu;
  const UintVec wide = (UintVec)_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(some, bytes));
#else
  UintVec wide{};
  for (int64_t i = 0; i < (slots < kLanes ? slots : kLanes); ++i) wide[i] = bytes[i];
#endif
  return scales_of(wide);
}

#if defined(__AVX512BW__)

// Some slots of each of four channels, `at` bytes behind where they begin: groups of 16.
inline void four_together(const char* const* columns, int64_t at, __mmask32 some, char* out) {
  // A lane is a quarter of four groups, so that the fourth of a lane is the next lane's; in the first half they are lower bits.
  const __m512i order = _mm512_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7);
  const __m512i up = _mm512_setr_epi32(4, 4, 4, 4, 4, 4, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0), upper = _mm512_set1_epi8(char(0xf0));
  const auto line = [&](int i) {
    const __m512i both = _mm512_castsi256_si512(_mm256_maskz_loadu_epi8(some, columns[i] + at));
    return _mm512_and_si512(_mm512_sllv_epi32(_mm512_permutexvar_epi32(order, both), up), upper);
  };
  const __m512i a = line(0), b = line(1), c = line(2), d = line(3);
  const __m512i ab = _mm512_unpacklo_epi8(a, b), cd = _mm512_unpacklo_epi8(c, d);
  const __m512i more_ab = _mm512_unpackhi_epi8(a, b), more_cd = _mm512_unpackhi_epi8(c, d);
  _mm512_storeu_si512(out, _mm512_unpacklo_epi16(ab, cd));
  _mm512_storeu_si512(out + 64, _mm512_unpackhi_epi16(ab, cd));
  _mm512_storeu_si512(out + 128, _mm512_unpacklo_epi16(more_ab, more_cd));
  _mm512_storeu_si512(out + 192, _mm512_unpackhi_epi16(more_ab, more_cd));
}

#endif

// Slots that were brought together by looking at each; `rows` of scales.
inline void one_together(const char* const* columns, int64_t fours, const char* const* rows, int64_t first, int64_t count, int64_t group, char* out) {
  float* const scales = (float*)(out + fours * kFourTogether);
  for (int64_t slot = 0; slot < count; ++slot) {
    const int64_t i = (first + slot) % group, at = (first + slot) / group * (group / 2) + i % (group / 2), row = 2 * i >= group;
    for (int64_t w = 0; w < 4 * fours; ++w) out[w / 4 * kFourTogether + 4 * slot + w % 4] = char(row ? columns[w][at] & 0xf0 : uint8_t(columns[w][at]) << 4);
    scales[slot] = scale_of(uint8_t(rows[row][at]));
  }
}

// `count` slots (at most kTogether) of `fours` times four columns from the slot `first` on; what lies `ahead` bytes further on is asked for.
// Slots are together in groups. out: [fours][kFourTogether], then float [kTogether].
inline void bring_together(const char* const* columns, int64_t fours, const char* const* rows, int64_t first, int64_t count, int64_t ahead,
                           int64_t group, char* out) {
  const int64_t at = first / 2;
  if (ahead) {
    for (int64_t w = 0; w < 4 * fours; ++w) __builtin_prefetch(columns[w] + at + ahead);
    for (int64_t row = 0; row < 2; ++row) __builtin_prefetch(rows[row] + at + ahead);
  }
#if defined(__AVX512BW__)
  if (group == 16) {
    const __mmask32 some = ~uint32_t{0} >> (kTogether - count) / 2;
    for (int64_t i = 0; i < fours; ++i, out += kFourTogether) four_together(columns + 4 * i, at, some, out);
    for (int64_t slot = 0; slot < count; slot += 16) {
      const auto half = [&](int row) { return _mm_loadl_epi64((const __m128i*)(rows[row] + at + slot / 2)); };
      store((float*)out + slot, scales_of((UintVec)_mm512_cvtepu8_epi32(_mm_unpacklo_epi64(half(0), half(1)))));
    }
    return;
  }
#endif
  one_together(columns, fours, rows, first, count, group, out);
}

// The first numbers of each channel that is read, of which each has `count` bytes, which no other number's asking reaches.
inline void fetch_columns(const char* const* columns, int64_t fours, const char* const* rows, int64_t count) {
  for (int64_t i = 0; i < (count < kColumnsAhead ? count : kColumnsAhead); i += 64) {
    for (int64_t w = 0; w < 4 * fours; ++w) __builtin_prefetch(columns[w] + i);
    for (int64_t row = 0; row < 2; ++row) __builtin_prefetch(rows[row] + i);
  }
}

}  // namespace
}  // namespace pagoda
