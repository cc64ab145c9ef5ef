// Scales and minima of a block's four-bit codes (page_shape.hpp), group by group and slot by slot as floats, for codes that are
// multiplied as they are (attention_nibbles.hpp). A value's codes are taken less 8, so that a weight too small for a byte loses the slot's
// share of what values differ by, and not of their least: number = scale * (code - 8) + middle.
#pragma once

#include "attention_slots.hpp"

namespace pagoda {
namespace {

constexpr float kMiddleCode = 8.0f;

struct GroupScales {
  int64_t k_count = 0, v_count = 0, stride = 0;  // groups of a slot; floats from one group to the next
  float *k_scales = nullptr, *k_least = nullptr, *v_scales = nullptr, *v_middles = nullptr;  // [groups][stride]

  static int64_t count_of(int64_t dim) { return (dim + kInt4Group - 1) / kInt4Group; }
  static int64_t floats(const PageShape& p, int64_t stride) { return 2 * (count_of(p.k_dim) + count_of(p.v_dim)) * stride; }

  GroupScales() = default;
  GroupScales(const PageShape& p, int64_t stride_, float* at) : k_count(count_of(p.k_dim)), v_count(count_of(p.v_dim)), stride(stride_) {
    k_scales = at, k_least = k_scales + k_count * stride;
    v_scales = k_least + k_count * stride, v_middles = v_scales + v_count * stride;
  }

#if PAGODA_DPBF16
  // Sixteen slots from number `at` of the block on become zeros.
  void clear_last(int64_t at) const {
    for (int64_t row = 0; row < 2 * (k_count + v_count); ++row) store(k_scales + row * stride + at, Vec{});
  }

  // `here` slots of a page from its slot `inside` on are numbers `at`, … of the block; zeros up to the next whole register.
  void read(const PageShape& p, const char* page, int64_t inside, int64_t at, int64_t here) const {
    const auto side = [&](const Plane& plane, int64_t count, float* scales, float* others, bool middles) {
      const char* from = page + plane.at + inside * plane.bytes;
      for (int64_t i = 0; i < here; i += kLanes, from += kLanes * plane.bytes) {
        const int slots = int(here - i < kLanes ? here - i : kLanes);
        for (int64_t g = 0; g < count; ++g) {
          const __m512i pair = pairs_of(from, count, g, slots);
          const Vec scale = (Vec)_mm512_slli_epi32(pair, 16), least = (Vec)_mm512_and_si512(pair, _mm512_set1_epi32(int(0xffff0000u)));
          store(scales + g * stride + at + i, scale);
          store(others + g * stride + at + i, middles ? fused(scale, kMiddleCode, least) : least);
        }
      }
    };
    side(p.k_scales, k_count, k_scales, k_least, false);
    side(p.v_scales, v_count, v_scales, v_middles, true);
  }

  // The largest of each slot's scales of V.
  void find_largest(int64_t lanes, float* out) const {
    for (int64_t i = 0; i < lanes; i += kLanes) {
      Vec most = load(v_scales + i);
      for (int64_t g = 1; g < v_count; ++g) most = maximum(load(v_scales + g * stride + i), most);
      store(out + i, most);
    }
  }

 private:
  // Scale and least of group g of up to sixteen slots, bfloat16 each.
  static __m512i pairs_of(const char* from, int64_t count, int64_t g, int slots) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    if (count == 2) {
      const uint32_t words = uint32_t((uint64_t{1} << 2 * slots) - 1);
      const __m512i low = _mm512_maskz_loadu_epi32(__mmask16(words), from), high = _mm512_maskz_loadu_epi32(__mmask16(words >> 16), from + 64);
      return _mm512_permutex2var_epi32(low, _mm512_add_epi32(_mm512_slli_epi32(lane, 1), _mm512_set1_epi32(int(g))), high);
    }
    const __m512i places = _mm512_add_epi32(_mm512_mullo_epi32(lane, _mm512_set1_epi32(int(count))), _mm512_set1_epi32(int(g)));
    return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), __mmask16((1u << slots) - 1), places, from, 4);
  }
#endif
};

}  // namespace
}  // namespace pagoda
