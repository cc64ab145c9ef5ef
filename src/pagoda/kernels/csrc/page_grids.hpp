// Grids of two bits straight to bfloat16, 32 columns at once: a code picks one of four numbers that were computed and rounded before.
//
//   keys     four registers hold what each code means in 32 channels; two masks of a slot's codes choose between them
//   values   one register holds what the codes of eight groups of 32 columns mean; a slot's codes look it up
#pragma once

#include "page_numbers.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

constexpr int64_t kGridGroup = 32;  // columns of a value that share a grid

inline int64_t row_bytes(int64_t dim, int64_t bits) { return (dim * bits + 7) / 8; }

template <int kNum>
struct Count {
  static constexpr int value = kNum;
};

// Numbers of a row by their places: out[d] = row[from[d]], 0 where that is below 0. It serves up to 64 of bfloat16.
template <typename Out>
struct Lookup {
  static constexpr bool serves = false;
  Lookup(const int*, int64_t) {}
  void look_up(const void*, int64_t, Out*) const {}
};

#if PAGODA_DPBF16

template <>
struct Lookup<uint16_t> {
  bool serves;
  int64_t dim;
  __m512i at[2];
  __mmask32 there[2];

  Lookup(const int* from, int64_t columns) : serves(from != nullptr && columns <= 64), dim(columns) {
    if (!serves) return;
    alignas(64) uint16_t places[64] = {};
    uint64_t mask = 0;
    for (int64_t d = 0; d < dim; ++d)
      if (from[d] >= 0) places[d] = uint16_t(from[d]), mask |= uint64_t{1} << d;
    for (int half = 0; half < 2; ++half) at[half] = _mm512_load_si512(places + 32 * half), there[half] = __mmask32(mask >> 32 * half);
  }

  static __mmask32 first(int64_t num) { return num >= 32 ? ~0u : num > 0 ? (1u << num) - 1 : 0u; }

  void look_up(const uint16_t* row, int64_t num, uint16_t* out) const {
    const __m512i x = _mm512_maskz_loadu_epi16(first(num), row), y = _mm512_maskz_loadu_epi16(first(num - 32), row + 32);
    for (int half = 0; half < 2; ++half)
      _mm512_mask_storeu_epi16(out + 32 * half, first(dim - 32 * half), _mm512_maskz_permutex2var_epi16(there[half], x, at[half], y));
  }
};

// Sixteen codes of two or four bits.
template <int kBits>
inline Vec narrow_codes(const uint8_t* codes) {
  alignas(64) static constexpr auto kShifts = [] {
    struct { uint8_t at[64]; } shifts{};
    for (int lane = 0; lane < kLanes; ++lane) shifts.at[4 * lane] = uint8_t(lane * kBits);
    return shifts;
  }();
  int64_t word = 0;
  memcpy(&word, codes, 2 * kBits);
  const __m512i x = _mm512_multishift_epi64_epi8(_mm512_load_si512(kShifts.at), _mm512_set1_epi64(word));
  return (Vec)_mm512_cvtepi32_ps(_mm512_and_si512(x, _mm512_set1_epi32((1 << kBits) - 1)));
}

// Codes of two bits of 32 columns as the lowest bits of 32 words; above them lies anything.
inline __m512i two_bit_words(const uint8_t* codes) {
  alignas(64) static constexpr uint8_t kShifts[64] = {
      0,  0,  2,  2,  4,  4,  6,  6,  8,  8,  10, 10, 12, 12, 14, 14, 16, 16, 18, 18, 20, 20, 22, 22, 24, 24, 26, 26, 28, 28, 30, 30,
      32, 32, 34, 34, 36, 36, 38, 38, 40, 40, 42, 42, 44, 44, 46, 46, 48, 48, 50, 50, 52, 52, 54, 54, 56, 56, 58, 58, 60, 60, 62, 62};
  int64_t word;
  memcpy(&word, codes, 8);
  return _mm512_multishift_epi64_epi8(_mm512_load_si512(kShifts), _mm512_set1_epi64(word));
}

inline __m512i halves_of(Vec first, Vec second) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first); }

inline void wide_channels(const EncodedPage& r, uint16_t* out) {
  const int64_t dim = r.side->dim, bytes = row_bytes(dim, 2);
  const uint16_t *scales = (const uint16_t*)(r.page + r.side->at[2]), *least = scales + dim;
  for (int64_t d = 0; d < dim; d += 32) {
    __m512i means[4];
    const Vec s = load(scales + d), t = load(scales + d + kLanes), a = load(least + d), b = load(least + d + kLanes);
#pragma GCC unroll 4
    for (int code = 0; code < 4; ++code) means[code] = halves_of(fused(s, float(code), a), fused(t, float(code), b));
    const uint8_t* codes = r.page + r.side->at[1] + d / 4;
    uint16_t* to = out + d;
    for (int64_t slot = 0; slot < r.page_size; ++slot, codes += bytes, to += r.stride) {
      const __m512i x = two_bit_words(codes);
      const __mmask32 low = _mm512_test_epi16_mask(x, _mm512_set1_epi16(1)), high = _mm512_test_epi16_mask(x, _mm512_set1_epi16(2));
      const __m512i even = _mm512_mask_blend_epi16(low, means[0], means[1]), odd = _mm512_mask_blend_epi16(low, means[2], means[3]);
      _mm512_storeu_si512(to, _mm512_mask_blend_epi16(high, even, odd));
    }
  }
}

// Whether sixteen (slot, group) pairs are the grids of whole slots, and a power of two of groups one.
inline bool whole_slots(int64_t groups) { return groups == 1 || groups == 2 || groups == 4 || groups == 8 || groups == 16; }

inline void wide_tokens(const EncodedPage& r, uint16_t* out) {
  const int64_t dim = r.side->dim, groups = dim / kGridGroup, bytes = row_bytes(dim, 2), pairs = r.page_size * groups;
  const int shift = __builtin_ctzll(groups);
  const uint8_t *codes = r.page + r.side->at[1], *grids = r.page + r.side->at[2];
  alignas(64) uint16_t order[32] = {};  // a slot's grids: scales, then minima
  for (int64_t p = 0; p < 16; ++p) order[p] = uint16_t(p / groups * 2 * groups + p % groups);
  const __m512i of_scales = _mm512_load_si512(order), of_least = _mm512_add_epi16(of_scales, _mm512_set1_epi16(int16_t(groups)));
  const Vec steps = (Vec)_mm512_setr_ps(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
  const __m512i four = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  const auto widened = [](__m512i words) { return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(words)), 16); };
  for (int64_t first = 0; first < pairs; first += 16) {
    const int64_t here = pairs - first < 16 ? pairs - first : 16;
    const __m512i words = _mm512_maskz_loadu_epi16(here == 16 ? ~0u : (1u << 2 * here) - 1, grids + 4 * first);
    const Vec scale = widened(_mm512_permutexvar_epi16(of_scales, words)), least = widened(_mm512_permutexvar_epi16(of_least, words));
    for (int64_t eight = 0; eight < here; eight += 8) {
      const auto means = [&](int quad) {
        const __m512i at = _mm512_add_epi32(four, _mm512_set1_epi32(int(eight) + 4 * quad));
        return fused(steps, (Vec)_mm512_permutexvar_ps(at, (__m512)scale), (Vec)_mm512_permutexvar_ps(at, (__m512)least));
      };
      const __m512i table = halves_of(means(0), means(1));
      const int64_t many = here - eight < 8 ? here - eight : 8;
      for (int64_t i = 0; i < many; ++i) {
        const int64_t pair = first + eight + i, slot = pair >> shift, group = pair & (groups - 1);
        const __m512i x = two_bit_words(codes + slot * bytes + group * (kGridGroup / 4));
        // (x & 3) | 4 i: looked up among 32 numbers, whatever is above five bits
        const __m512i at = _mm512_ternarylogic_epi64(x, _mm512_set1_epi16(3), _mm512_set1_epi16(int16_t(4 * i)), 0xea);
        _mm512_storeu_si512(out + slot * r.stride + group * kGridGroup, _mm512_permutexvar_epi16(at, table));
      }
    }
  }
}

// Decodes a page of such a kind; false where it is another.
inline bool wide_grid(const EncodedPage& r) {
  if (r.side->dim % 32 != 0 || r.side->at[0] != 2) return false;
  if (r.side->kind == CodeKind::channel_grid) return wide_channels(r, static_cast<uint16_t*>(r.out)), true;
  if (r.side->kind == CodeKind::token_grid && whole_slots(r.side->dim / kGridGroup))
    return wide_tokens(r, static_cast<uint16_t*>(r.out)), true;
  return false;
}

#endif

}  // namespace
}  // namespace pagoda
