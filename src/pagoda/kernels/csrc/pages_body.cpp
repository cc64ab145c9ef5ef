// Rows of new tokens as pages store them, for one instruction set. The definitions are kv/codecs/*.py; these give the same bits.
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "attention_rows.hpp"
#include "pages.hpp"

namespace pagoda {
namespace {

// The smallest bfloat16 not below x >= 0, as bits.
inline uint16_t bf16_above(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return uint16_t((bits + 0xffffu) >> 16);
}

// The largest bfloat16 not above x.
inline uint16_t bf16_below(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return uint16_t((x < 0.0f ? bits + 0xffffu : bits) >> 16);
}

inline Vec some(const float* x, int64_t count) { return count < kLanes ? load_some(x, count) : load(x); }

inline float largest_size(const float* x, int64_t dim) {
  Vec sizes{};
  for (int64_t d = 0; d < dim; d += kLanes) sizes = maximum((Vec)((UintVec)some(x + d, dim - d) & 0x7fffffffu), sizes);
  float most = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) most = sizes[lane] > most ? sizes[lane] : most;
  return most;
}

inline float round_even(float x) {  // |x| < 2^22
  return (x + 12582912.0f) - 12582912.0f;
}

inline Vec round_even(Vec x) { return (x + 12582912.0f) - 12582912.0f; }

inline Vec between(Vec x, float least, float most) {
  return select(x < splat(least), splat(least), select(x > splat(most), splat(most), x));
}

// The lowest byte of each of the first `count` lanes.
inline void store_bytes(UintVec x, int64_t count, uint8_t* to) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm512_cvtepi32_epi8((__m512i)x);
#else
  typedef uint8_t ByteVec __attribute__((vector_size(kLanes)));
  const ByteVec bytes = __builtin_convertvector(x, ByteVec);
#endif
  if (count < kLanes) memcpy(to, &bytes, size_t(count));
  else memcpy(to, &bytes, kLanes);
}

inline UintVec whole(Vec x) { return (UintVec)__builtin_convertvector(x, IntVec); }

void encode_int8(const float* x, int64_t dim, uint8_t* codes, uint16_t* scale) {
  *scale = bf16_above(largest_size(x, dim) / 127.0f);
  const float unit = widen(*scale);
  if (!(unit > 0.0f)) return (void)memset(codes, 0, size_t(dim));
  for (int64_t d = 0; d < dim; d += kLanes)
    store_bytes(whole(between(round_even(some(x + d, dim - d) / unit), -127.0f, 127.0f)), dim - d, codes + d);
}

// `e4m3_bits` of small_floats.hpp, of each lane.
inline UintVec e4m3_bits(Vec x) {
  const UintVec bits = (UintVec)x, size = bits & 0x7fffffffu;
  const UintVec low = (UintVec)((Vec)size + 0x1p14f) & 0xfu, high = ((size + 0x7ffffu + (size >> 20 & 1u)) >> 20) - (120u << 3);
  return (bits >> 24 & 0x80u) | (size < (121u << 23) ? low : high);
}

void encode_fp8(const float* x, int64_t dim, uint8_t* codes, uint16_t* scale) {
  *scale = bf16_above(largest_size(x, dim) / 448.0f);
  const float unit = widen(*scale);
  if (!(unit > 0.0f)) return (void)memset(codes, 0, size_t(dim));
  for (int64_t d = 0; d < dim; d += kLanes) store_bytes(e4m3_bits(some(x + d, dim - d) / unit), dim - d, codes + d);
}

// `size` in 0 ... 7.5 as e2m3 without its sign: steps of 1/8 below 2, then of 1/4 and 1/2.
inline unsigned e2m3_bits(float size) {
  if (size < 2.0f) return unsigned(round_even(8.0f * size));
  return size < 4.0f ? 8 + unsigned(round_even(4.0f * size)) : 16 + unsigned(round_even(2.0f * size));
}

// As `widen_short` of attention_rows.hpp reads it.
void encode_short(const float* x, int64_t columns, uint8_t* codes, uint16_t* scale) {
  *scale = bf16_above(largest_size(x, columns) / 7.5f);
  const float unit = widen(*scale);
  const int64_t half = (columns + 1) / 2;
  memset(codes, 0, size_t(half + (columns + 3) / 4));
  for (int64_t i = 0; i < columns; ++i) {
    const float number = unit > 0.0f ? x[i] / unit : 0.0f;
    const unsigned size = e2m3_bits(number < 0.0f ? -number : number), sign = number < 0.0f && size > 0 ? 2u : 0u;
    codes[i < half ? i : i - half] |= uint8_t(i < half ? size & 15u : (size & 15u) << 4);
    codes[half + i / 4] |= uint8_t((size >> 4 | sign) << 2 * (i % 4));
  }
}

// A whole group: its first half lies in the low bits.
void encode_group(const float* x, uint8_t* codes, uint16_t* scales) {
  constexpr int kHalf = kInt4Group / 2;
  Vec lows = load(x), highs = lows;
  for (int d = kLanes; d < kInt4Group; d += kLanes) {
    const Vec here = load(x + d);
    lows = select(here < lows, here, lows), highs = maximum(here, highs);
  }
  float low = lows[0], high = highs[0];
  for (int lane = 1; lane < kLanes; ++lane) low = lows[lane] < low ? lows[lane] : low, high = highs[lane] > high ? highs[lane] : high;
  scales[1] = bf16_below(low + 0.0f);  // + 0: of -0 and 0 either may be called the smallest or largest
  const float least = widen(scales[1]);
  scales[0] = bf16_above((high - least + 0.0f) / 15.0f);
  const float unit = widen(scales[0]);
  if (!(unit > 0.0f)) return (void)memset(codes, 0, kHalf);
  const auto code = [&](const float* at) { return whole(between(round_even((load(at) - least) / unit), 0.0f, 15.0f)); };
  for (int i = 0; i < kHalf; i += kLanes) store_bytes(code(x + i) | code(x + kHalf + i) << 4, kLanes, codes + i);
}

void encode_int4(const float* x, int64_t dim, uint8_t* codes, uint16_t* scales) {
  for (int64_t first = 0; first < dim; first += kInt4Group, scales += 2) {
    const int64_t here = dim - first < kInt4Group ? dim - first : kInt4Group, half = (here + 1) / 2;
    if (here <= kInt4Short) return encode_short(x + first, here, codes, scales);
    if (here == kInt4Group) {
      encode_group(x + first, codes, scales);
      codes += half;
      continue;
    }
    float low = x[first], high = x[first];
    for (int64_t d = first; d < first + here; ++d) low = x[d] < low ? x[d] : low, high = x[d] > high ? x[d] : high;
    scales[1] = bf16_below(low + 0.0f);
    const float least = widen(scales[1]);
    scales[0] = bf16_above((high - least + 0.0f) / 15.0f);
    const float unit = widen(scales[0]);
    const auto code = [&](int64_t d) {
      const float steps = unit > 0.0f ? round_even((x[first + d] - least) / unit) : 0.0f;
      return uint8_t(steps < 0.0f ? 0.0f : steps > 15.0f ? 15.0f : steps);
    };
    for (int64_t i = 0; i < half; ++i) codes[i] = uint8_t(code(i) | (half + i < here ? code(half + i) << 4 : 0));
    codes += half;
  }
}

void encode(Store store, const float* x, int64_t dim, char* row, char* scales) {
  switch (store) {
    case Store::f32:
      memcpy(row, x, 4 * dim);
      return;
    case Store::bf16:
      for (int64_t d = 0; d < dim; ++d) narrow(x[d], (uint16_t*)row + d);
      return;
    case Store::f16:
      for (int64_t d = 0; d < dim; ++d) ((uint16_t*)row)[d] = float_to_half(x[d]);
      return;
    case Store::int8: return encode_int8(x, dim, (uint8_t*)row, (uint16_t*)scales);
    case Store::fp8: return encode_fp8(x, dim, (uint8_t*)row, (uint16_t*)scales);
    case Store::int4: return encode_int4(x, dim, (uint8_t*)row, (uint16_t*)scales);
    case Store::pages: return;  // nobody writes single slots of them
  }
}

thread_local float* wide = nullptr;  // one row, kept
thread_local int64_t wide_size = 0;

}  // namespace

namespace PAGODA_ISA {

void stream_page(char* to, const char* from, int64_t bytes) {
#if defined(__AVX512F__)
  for (int64_t at = 0; at < bytes; at += 64) _mm512_stream_si512((__m512i*)(to + at), _mm512_loadu_si512(from + at));
#elif defined(__SSE2__)
  for (int64_t at = 0; at < bytes; at += 16) _mm_stream_si128((__m128i*)(to + at), _mm_loadu_si128((const __m128i*)(from + at)));
#else
  memcpy(to, from, bytes);
#endif
}

void write_slots(const WriteArgs& a, int64_t first, int64_t last) {
  const PageShape& p = a.shape;
  const bool copied = int32_t(p.store) == int32_t(a.dtype);  // the two enumerations agree where both exist
  const int64_t most = p.k_dim > p.v_dim ? p.k_dim : p.v_dim;
  if (!copied && wide_size < most) {
    __builtin_free(wide);
    wide = (float*)__builtin_malloc(sizeof(float) * most);
    if (wide == nullptr) __builtin_trap();
    wide_size = most;
  }
  const auto put = [&](const char* from, int64_t dim, const Plane& rows, const Plane& scales, char* page, int64_t slot) {
    char* row = page + rows.at + slot * rows.bytes;
    if (copied) {
      memcpy(row, from, rows.bytes);
      return;
    }
    widen_row(Store(a.dtype), from, nullptr, dim, wide);
    encode(p.store, wide, dim, row, page + scales.at + slot * scales.bytes);
  };
  for (int64_t t = first; t < last; ++t)
    for (int64_t h = 0; h < a.heads; ++h) {
      const int64_t i = t * a.heads + h, slot = a.id(a.slots, i);
      char* page = a.pages + a.id(a.page_ids, i) * p.page_bytes;
      put(a.k.at(t, h), p.k_dim, p.k, p.k_scales, page, slot);
      if (p.v.bytes) put(a.v.at(t, h), p.v_dim, p.v, p.v_scales, page, slot);
    }
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
