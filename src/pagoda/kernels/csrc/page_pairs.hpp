// Scores by columns (page_columns.hpp) of pages of 16 slots that are few enough to be one part, two pages at a time: a byte of a column holds two
// slots of a page, which are not brought next to each other, since only their sum counts.
//
//   a channel of four pages     AAAAAAAA BBBBBBBB CCCCCCCC DDDDDDDD   lower bits: slots 0 … 7 of a page, upper: 8 … 15
//   four channels of them       AAAAAAAA BBBBBBBB   slots 0 … 7       [register of 16 slots][4], as bring_together() has them
//                               AAAAAAAA BBBBBBBB   slots 8 … 15
//                               CCCCCCCC DDDDDDDD   …
#pragma once

#include "across.hpp"
#include "page_products.hpp"
#include "page_shares.hpp"

#if defined(__AVX512VBMI__)

namespace pagoda {
namespace {

constexpr int64_t kPairSlots = 2 * kLanes;

// A page that is read behind the last one is another channel's, or a scale's; it lies beside another one, whose numbers say how large they are.
inline bool go_in_pairs(const PageScoreArgs& a) { return a.rule.kind() == Marks::columns && a.rule.per_page == kLanes && a.room >= 4 && a.pages > 1; }

// Byte i of two channels side by side: bytes of four pages each of a register's first and second half, which begin with the lanes in turns.
struct InTurns {
  alignas(64) uint8_t at[64];
  constexpr InTurns() : at() {
    for (int i = 0; i < 32; ++i) {
      const int lane = i / 8, half = i / 4 % 2, from = 16 * half + 8 * (lane / 2) + 4 * (lane % 2) + i % 4;
      at[2 * i] = uint8_t(from), at[2 * i + 1] = uint8_t(32 + from);
    }
  }
};

inline void four_in_pairs(const char* const* columns, int64_t at, char* out) {
  static constexpr InTurns in_turns;
  const __m512i upper = _mm512_set1_epi8(char(0xf0));
  const auto two = [&](int i) {
    const auto half = [&](int n) { return _mm256_loadu_si256((const __m256i*)(columns[i + n] + at)); };
    return _mm512_permutexvar_epi8(_mm512_load_si512(in_turns.at), _mm512_inserti64x4(_mm512_castsi256_si512(half(0)), half(1), 1));
  };
  const __m512i ab = two(0), cd = two(2), first = _mm512_unpacklo_epi16(ab, cd), second = _mm512_unpackhi_epi16(ab, cd);
  _mm512_storeu_si512(out, _mm512_and_si512(_mm512_slli_epi16(first, 4), upper));
  _mm512_storeu_si512(out + 64, _mm512_and_si512(first, upper));
  _mm512_storeu_si512(out + 128, _mm512_and_si512(_mm512_slli_epi16(second, 4), upper));
  _mm512_storeu_si512(out + 192, _mm512_and_si512(second, upper));
}

// products [heads][ld]: two registers of each pair of pages. `room`: page_score_room() has it.
inline void store_pair_products(const PageScoreArgs& a, const PreparedQueries& q, float* room, Products products, Asking& asking) {
  const int64_t slots = a.pages * kLanes, fours = q.fours();
  const char** const columns = (const char**)line_from(room);
  char* const together = (char*)(columns + 4 * fours);
  const char* const rows[2] = {column_of_scales(a), column_of_scales(a) + column_bytes(a)};
  find_columns(a, q, columns);
  if (!q.asked) fetch_columns(columns, fours, rows, slots / 2);
  for (int64_t first = 0; first < slots; first += kTogether) {
    const int64_t left = slots - first, at = first / 2;
    for (int64_t i = 0; i < fours; ++i) four_in_pairs(columns + 4 * i, at, together + i * kFourTogether);
    float* const scales = (float*)(together + fours * kFourTogether);
    for (int64_t slot = 0; slot < (left < kTogether ? left : kTogether); slot += kPairSlots)
      for (int row = 0; row < 2; ++row)
        store(scales + slot + row * kLanes, scales_at((const uint8_t*)rows[row] + at + slot / 2, left - slot < kPairSlots ? kLanes / 2 : kLanes));
    by_heads(a.heads, [&](int64_t head, auto n) {
      store_together<n.value>({a, q, head}, together, left > kPairSlots ? kTogether : kPairSlots, products.at + head * products.ld + first, products.ld);
    });
    asking.step();
  }
}

// Two registers of each pair of pages become the sum of both, of 2^(unit * x - less). The sum of all.
inline Vec weigh_pairs(float* x, int64_t pages, float unit, float less_) {
  const Vec by = splat(unit), less = splat(less_);
  Vec sum{};
  const auto pair = [&](int64_t i) {
    const auto share = [&](int64_t row) { return share_of(fused_less(load(x + (2 * i + row) * kLanes), by, less)); };
    return share(0) + share(1);
  };
  int64_t i = 0;
  for (; 2 * i + 2 <= pages; ++i) {
    const Vec one = pair(i);
    store(x + i * kLanes, one), sum += one;
  }
  if (2 * i == pages) return sum;
  const Vec last = (Vec)_mm512_maskz_mov_ps(0x00ff, (__m512)pair(i));  // of one page
  return store(x + i * kLanes, last), sum + last;
}

// [16 pages]: of eight registers, each the numbers of two pages, the sums.
inline Vec totals_of_pairs(const float* registers) {
  const auto at = [&](int i) { return _mm512_loadu_ps(registers + kLanes * i); };
  const auto four = [&](int i) {  // a lane of each page
    return _mm512_shuffle_f32x4(at(i), at(i + 1), 0x88) + _mm512_shuffle_f32x4(at(i), at(i + 1), 0xdd);
  };
  const __m512 a = four(0), b = four(2), c = four(4), d = four(6);
  const __m512 ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b), cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
  const __m512 all = _mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xee);  // [lane][four]: of page 4 * four + lane
  return (Vec)_mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), all);
}

}  // namespace
}  // namespace pagoda

#endif
