// From sums to results: scaled, with bias, rounded; with gated SiLU where a product ends so.
#pragma once

#include "activation_halves.hpp"
#include "packed_open.hpp"

namespace pagoda {
namespace {

// ---- scratch: one buffer a thread, kept ------------------------------------------------------------------------------------

struct Scratch {
  char* data = nullptr;
  int64_t size = 0;
  ~Scratch() { __builtin_free(data); }
  char* need(int64_t bytes) {
    if (bytes > size) {
      __builtin_free(data);
      size = (bytes + 4095) / 4096 * 4096;
      data = static_cast<char*>(__builtin_malloc(size + 64));
      if (data == nullptr) __builtin_trap();
    }
    return data + (-reinterpret_cast<intptr_t>(data) & 63);
  }
};

thread_local Scratch scratch;

// ---- from sums to results --------------------------------------------------------------------------------------------------

inline void put_result(float* p, Vec x) { store(p, x); }
inline void put_result(uint16_t* p, Vec x) {
#if PAGODA_DPBF16  // one instruction instead of ten; numbers below 2^-126 become zeros
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
  store(p, x);
#endif
}

thread_local Scratch left_scratch;

// A panel of the left of a low-rank term, [rank][kVecs]; null where there is none.
inline const Vec* low_rank_left(const PackedMatrix& m, int64_t panel) {
  const int64_t rank = m.low_rank();
  if (rank == 0) return nullptr;
  Vec(*const left)[kVecs] = reinterpret_cast<Vec(*)[kVecs]>(left_scratch.need(rank * kPanel * 4));
  open_left(PanelRows(m, panel), part_of<uint16_t>(m, 4), rank, left);
  return left[0];
}

// Results of tokens first..end in one panel: scaled, with bias, rounded. The last panel of a matrix may be cut short.
// T: what they are rounded to; Out: T, or float for numbers of T kept wide.
template <bool kIntegers, class T, class Out = T>
void finish_panel(const LinearSlice& s, int64_t first, int64_t end, int64_t panel, const uint32_t* sums, int64_t sum_stride) {
  const PackedMatrix& m = s.matrix;
  const int64_t row = panel * kPanel, count = smaller(kPanel, m.outputs - row);
  Vec scale[kVecs], bias[kVecs];
  T some[kPanel] = {};
  Out edge[kPanel];
  const Vec* const left = low_rank_left(m, panel);
  if (s.bias) memcpy(some, static_cast<const T*>(s.bias) + row, count * sizeof(T));
  for (int v = 0; v < kVecs; ++v) {
    bias[v] = load(some + v * kLanes);
    scale[v] = splat(1.0f);
    if (m.scales && m.group == 0) scale[v] = load(static_cast<const float*>(m.scales) + row + v * kLanes);
  }
  for (int64_t t = first; t < end; ++t, sums += sum_stride) {
    Out* const out = static_cast<Out*>(s.out) + t * s.out_stride + row;
    Out* const to = count == kPanel ? out : edge;
    for (int v = 0; v < kVecs; ++v) {
      const UintVec sum = load_lanes(sums + v * kLanes);
      Vec y;
      if constexpr (kIntegers) y = fused(to_floats((IntVec)sum), scale[v] * s.x.scales[t], bias[v]);
      else y = fused((Vec)sum, scale[v], bias[v]);
      for (int64_t k = 0; k < s.x.rank; ++k) y = fused(left[k * kVecs + v], s.x.low[t * s.x.rank + k], y);
      if constexpr (sizeof(Out) != sizeof(T)) {
        T rounded[kLanes];
        store(rounded, y);
        y = load(rounded);
      }
      put_result(to + v * kLanes, y);
    }
    if (to != out) memcpy(out, to, count * sizeof(Out));
  }
}

#if PAGODA_DPBF16

// Results of two panels, whose rows begin `apart` rows from each other.
template <bool kIntegers>
struct TwoPanels {
  TwoPanels(const LinearSlice& s, int64_t row, int64_t apart) : token_scales(s.x.scales) {
    const float* const scales = s.matrix.group == 0 ? static_cast<const float*>(s.matrix.scales) : nullptr;
    for (int p = 0; p < 2; ++p) {
      scale[p] = scales ? load(scales + row + p * apart) : splat(1.0f);
      bias[p] = s.bias ? load(static_cast<const uint16_t*>(s.bias) + row + p * apart) : Vec{};
    }
  }

  Vec of(const uint32_t* sums, int p, int64_t token) const {
    const UintVec sum = load_lanes(sums + p * kPanel);
    if constexpr (kIntegers) return fused(to_floats((IntVec)sum), scale[p] * token_scales[token], bias[p]);
    else return fused((Vec)sum, scale[p], bias[p]);
  }

  const float* token_scales;
  Vec scale[2], bias[2];
};

// Where results of rows row… of a token begin, which may lie in tiles (passes_tiles).
inline int64_t column_of(const LinearSlice& s, int64_t row) {
  return s.out_tile ? row / kTileColumns * s.out_tile + row % kTileColumns : row;
}

// The same for results in bfloat16 of two whole panels: a cache line of each token at once.
template <bool kIntegers>
void finish_pair(const LinearSlice& s, int64_t first, int64_t end, int64_t panel, const uint32_t* sums, int64_t sum_stride) {
  const int64_t row = panel * kPanel, stride = s.out_stride;
  uint16_t* out = static_cast<uint16_t*>(s.out) + first * stride + column_of(s, row);
  const TwoPanels<kIntegers> results(s, row, kPanel);
  for (int64_t t = first; t < end; ++t, sums += sum_stride, out += stride) {
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)results.of(sums, 1, t), (__m512)results.of(sums, 0, t));
    memcpy(out, &both, sizeof both);
  }
}

inline Vec rounded_to_bf16(Vec x) {
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x)), 16);
}

// The same kept wide: 32 floats of each token.
template <bool kIntegers>
void finish_wide_pair(const LinearSlice& s, int64_t first, int64_t end, int64_t panel, const uint32_t* sums, int64_t sum_stride) {
  const int64_t row = panel * kPanel, stride = s.out_stride;
  float* out = static_cast<float*>(s.out) + first * stride + row;
  const TwoPanels<kIntegers> results(s, row, kPanel);
  for (int64_t t = first; t < end; ++t, sums += sum_stride, out += stride)
    for (int p = 0; p < 2; ++p) store(out + p * kPanel, rounded_to_bf16(results.of(sums, p, t)));
}

// Gated SiLU of two panels side by side in `sums`, number `panel` of the first rows and of the others.
template <bool kIntegers>
void finish_gated(const LinearSlice& s, int64_t first, int64_t end, int64_t panel, const uint32_t* sums, int64_t sum_stride) {
  const int64_t row = panel * kPanel, stride = s.out_stride, half = s.rows();
  uint16_t* out = static_cast<uint16_t*>(s.out) + first * stride + column_of(s, row);
  const TwoPanels<kIntegers> results(s, row, half);
  for (int64_t t = first; t < end; ++t, sums += sum_stride, out += stride) {
    const Vec gate = between<uint16_t>(results.of(sums, 0, t)), up = between<uint16_t>(results.of(sums, 1, t));
    put_last(out, between<uint16_t>(silu_roughly(gate)) * up, kLanes);
  }
}

#endif

#if PAGODA_AMX

template <bool kIntegers>
void note_largest(const LinearSlice&, int64_t first, int64_t end, int64_t panel, int64_t panels, const uint32_t* sums);

// Results of the panels that tiles multiply together, side by side in `sums`: a pair, or the last one alone.
template <bool kIntegers>
void finish_tiles(const LinearSlice& s, int64_t first, int64_t end, int64_t panel, int64_t panels, const uint32_t* sums) {
  constexpr int64_t kStride = 2 * kPanel;
  if (s.gated) return finish_gated<kIntegers>(s, first, end, panel, sums, kStride);
  if (s.largest) return note_largest<kIntegers>(s, first, end, panel, panels, sums);
  if (panels == 2 && s.dtype == Dtype::bf16 && (panel + 2) * kPanel <= s.matrix.outputs)
    return (s.wide ? finish_wide_pair<kIntegers> : finish_pair<kIntegers>)(s, first, end, panel, sums, kStride);
  for (int64_t p = panel; p < panel + panels; ++p, sums += kPanel) {
    if (s.dtype == Dtype::f32) finish_panel<kIntegers, float>(s, first, end, p, sums, kStride);
    else if (s.wide) finish_panel<kIntegers, uint16_t, float>(s, first, end, p, sums, kStride);
    else finish_panel<kIntegers, uint16_t>(s, first, end, p, sums, kStride);
  }
}

// Rows row… of one panel, those of `lanes`, beside the largest so far.
inline void raise(Largest& best, Vec results, __mmask16 lanes, int64_t row) {
  const __m512 top = _mm512_loadu_ps(best.top);
  best.none |= _mm512_mask_cmp_ps_mask(lanes, (__m512)results, (__m512)results, _CMP_UNORD_Q) != 0;
  const __mmask16 higher = _mm512_mask_cmp_ps_mask(lanes, (__m512)results, top, _CMP_GT_OQ);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i rows = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(row)), lane);
  _mm512_mask_storeu_ps(best.top, higher, (__m512)results);
  _mm512_mask_storeu_epi32(best.row, higher, rows);
}

// Results of both panels of a pair, those of `lanes`: a lane is raised some ten times in a whole vocabulary.
inline void note_pair(Largest& best, const Vec (&x)[2], const __mmask16 (&lanes)[2], int64_t row) {
  const __m512 top = _mm512_loadu_ps(best.top);
  __mmask16 higher = 0;  // or no number
  for (int p = 0; p < 2; ++p) higher |= _mm512_mask_cmp_ps_mask(lanes[p], (__m512)x[p], top, _CMP_NLE_UQ);
  if (higher)
    for (int p = 0; p < 2; ++p) raise(best, x[p], lanes[p], row + p * kPanel);
}

// The same of tokens first..end.
template <bool kIntegers>
void note_largest(const LinearSlice& s, int64_t first, int64_t end, int64_t panel, int64_t panels, const uint32_t* sums) {
  constexpr int64_t kStride = 2 * kPanel;
  const int64_t row = panel * kPanel, left = s.matrix.outputs - row;
  if (panels == 2 && s.dtype == Dtype::bf16 && left >= kStride) {
    const TwoPanels<kIntegers> results(s, row, kPanel);
    for (int64_t t = first; t < end; ++t, sums += kStride)
      note_pair(s.largest[t], {rounded_to_bf16(results.of(sums, 0, t)), rounded_to_bf16(results.of(sums, 1, t))}, {0xffff, 0xffff}, row);
    return;
  }
  float results[kStride] = {};
  LinearSlice one = s;
  one.largest = nullptr, one.out_stride = kStride;
  const auto in_panel = [left](int64_t p) { return static_cast<__mmask16>((1u << smaller(kPanel, larger(left - p * kPanel, 0))) - 1); };
  for (int64_t t = first; t < end; ++t, sums += kStride) {
    one.out = results - t * kStride - row;
    finish_tiles<kIntegers>(one, t, t + 1, panel, panels, sums);
    note_pair(s.largest[t], {load(results), load(results + kPanel)}, {in_panel(0), panels < 2 ? __mmask16{0} : in_panel(1)}, row);
  }
}

#endif

}  // namespace
}  // namespace pagoda
