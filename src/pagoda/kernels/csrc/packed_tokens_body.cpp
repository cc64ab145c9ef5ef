// Tokens made ready for products with packed weights: widened, copied or quantized (see packed.hpp).

#include "packed_open.hpp"

namespace pagoda {
namespace {

typedef uint8_t Bytes __attribute__((vector_size(16)));

// Where byte i of sixteen stored ones comes from: blocks of a format's inputs in the order of its fields.
Bytes order_of(const PackedMatrix& m) {
  const int fields = static_cast<int>(m.block()), per_byte = fields / 4;
  Bytes order;
  for (int i = 0; i < 16; ++i) {
    const int place = i % fields, step = place / 4, byte = place % 4;
    order[i] = static_cast<uint8_t>(i / fields * fields + element_of(byte * per_byte + step, fields));
  }
  return order;
}

// Round to nearest, ties to even, after the product was rounded: what quantize.py does.
inline IntVec rounded(Vec x) {
#if defined(__AVX512F__)
  return (IntVec)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
  return (IntVec)_mm256_cvtps_epi32((__m256)x);
#else
  IntVec y;
  for (int i = 0; i < kLanes; ++i) y[i] = static_cast<int32_t>(__builtin_lrintf(x[i]));
  return y;
#endif
}

inline void load_sixteen(const float* p, int64_t count, Vec (&x)[kVecs]) {
  if (count >= kPanel) {
    for (int v = 0; v < kVecs; ++v) x[v] = load(p + v * kLanes);
    return;
  }
  float some[kPanel] = {};
  for (int64_t i = 0; i < count; ++i) some[i] = p[i];
  load_sixteen(some, kPanel, x);
}

inline void load_sixteen(const uint16_t* p, int64_t count, Vec (&x)[kVecs]) {
  if (count >= kPanel) {
    for (int v = 0; v < kVecs; ++v) x[v] = load(p + v * kLanes);
    return;
  }
  float some[kPanel] = {};
  for (int64_t i = 0; i < count; ++i) some[i] = widen(p[i]);
  load_sixteen(some, kPanel, x);
}

#if PAGODA_DPBF16

// 32 numbers at once, those with even numbers and the others: no instruction crosses a register.
struct Evens {
  Vec even, odd;
  explicit Evens(const uint16_t* x) {
    const __m512i both = _mm512_loadu_si512(x);
    even = (Vec)_mm512_slli_epi32(both, 16), odd = (Vec)_mm512_and_si512(both, _mm512_set1_epi32(-65536));
  }
};

#endif

// Sizes so far and those of `count` more numbers. As integers, so that a NaN is larger than everything and reaches the scale.
template <class T>
inline IntVec sizes_with(IntVec most, const T* x, int64_t count) {
  int64_t i = 0;
#if PAGODA_DPBF16
  if constexpr (sizeof(T) == 2)
    for (; i + 32 <= count; i += 32) {
      const Evens y(x + i);
      const IntVec even = (IntVec)y.even & 0x7fffffff, odd = (IntVec)y.odd & 0x7fffffff;
      most = even > most ? even : most, most = odd > most ? odd : most;
    }
#endif
  for (; i < count; i += kPanel) {
    Vec part[kVecs];
    load_sixteen(x + i, count - i, part);
    for (int v = 0; v < kVecs; ++v) {
      const IntVec size = (IntVec)part[v] & 0x7fffffff;
      most = size > most ? size : most;
    }
  }
  return most;
}

inline float largest_of(IntVec sizes) {
#if defined(__AVX512F__)
  const int32_t bits = _mm512_reduce_max_epi32((__m512i)sizes);
#else
  int32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits = sizes[i] > bits ? sizes[i] : bits;
#endif
  float size;
  memcpy(&size, &bits, 4);
  return size;
}

// Of numbers up to `most`: what their integers are multiplied with, and they before they become integers.
inline float scale_of(float most) { return most / 127.0f; }
inline float inverse_of(float most) { return most == 0.0f ? 0.0f : 127.0f / most; }

// What makes up for stored offsets is so many times the tokens' sum, subtracted.
inline uint32_t offset_of(const PackedMatrix& m) { return m.zeros ? 1 : static_cast<uint32_t>(m.middle()); }

// The lowest bytes of sixteen integers, byte i of them from place order[i].
inline Bytes bytes_of(const IntVec (&q)[kVecs], Bytes order) {
#if defined(__AVX512F__)
  return (Bytes)_mm_shuffle_epi8(_mm512_cvtepi32_epi8((__m512i)q[0]), (__m128i)order);
#else
  int32_t whole[kPanel];
  memcpy(whole, q, sizeof whole);
  Bytes bytes;
  for (int j = 0; j < 16; ++j) bytes[j] = static_cast<uint8_t>(whole[j]);
  return __builtin_shuffle(bytes, order);
#endif
}

inline uint32_t total_of(UintVec x) {
#if defined(__AVX512F__)
  return static_cast<uint32_t>(_mm512_reduce_add_epi32((__m512i)x));
#else
  uint32_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
#endif
}

// count inputs of one group, `out` padded to whole blocks of its own format; the integers are added to `sum`. Unsigned: of
// a token with a NaN it wraps around, and the scale, which is NaN then, spoils the result anyway.
template <class T>
inline UintVec quantize(UintVec sum, const T* x, int64_t count, int64_t padded, float inverse, Bytes order, uint8_t* out) {
  int64_t i = 0;
#if PAGODA_DPBF16
  const __m256i orders = _mm256_broadcastsi128_si256((__m128i)order), ones = _mm256_set1_epi8(1);
  __m256i sums = _mm256_setzero_si256();
  if constexpr (sizeof(T) == 2)
    for (; i + 32 <= count; i += 32) {
      const Evens y(x + i);
      const __m512i even = (__m512i)rounded(y.even * inverse), odd = (__m512i)rounded(y.odd * inverse);
      const __m512i pairs = _mm512_ternarylogic_epi32(even, _mm512_slli_epi32(odd, 8), _mm512_set1_epi32(255), 0xe4);  // lowest bytes of even
      const __m256i bytes = _mm256_shuffle_epi8(_mm512_cvtepi32_epi16(pairs), orders);
      sums = _mm256_dpbusd_epi32(sums, ones, bytes);
      memcpy(out + i, &bytes, sizeof bytes);
    }
  sum += (UintVec)_mm512_zextsi256_si512(sums);
#endif
  for (; i < padded; i += kPanel) {
    Vec part[kVecs];
    load_sixteen(x + i, count - i, part);
    IntVec q[kVecs];
    for (int v = 0; v < kVecs; ++v) {
      q[v] = rounded(part[v] * inverse);
      sum += (UintVec)q[v];
    }
    const Bytes bytes = bytes_of(q, order);
    if (padded - i >= 16) memcpy(out + i, &bytes, 16);
    else memcpy(out + i, &bytes, padded - i);
  }
  return sum;
}

template <class T>
void quantize_token(const PrepareArgs& a, const T* x, int64_t token) {
  const PackedMatrix& m = *a.matrix;
  const int64_t groups = m.groups(), group = m.group == 0 ? m.inputs : m.group;
  uint8_t* const out = reinterpret_cast<uint8_t*>(const_cast<uint32_t*>(a.out.data) + token * a.out.steps);
  float* const scales = const_cast<float*>(a.out.scales) + token * groups;
  uint32_t* const sums = const_cast<uint32_t*>(a.out.sums) + token * groups;
  const Bytes order = order_of(m);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * group, count = group < m.inputs - first ? group : m.inputs - first;
    const float most = largest_of(sizes_with(IntVec{}, x + first, count));
    scales[g] = scale_of(most);
    const int64_t padded = (count + m.block() - 1) / m.block() * m.block();
    sums[g] = 0u - offset_of(m) * total_of(quantize(UintVec{}, x + first, count, padded, inverse_of(most), order, out + first));
  }
}

// Calls act(token, column, 32 inputs) for all tokens of the tiles of columns first..end.
template <class Act>
inline void each_line(const PrepareArgs& a, int64_t first, int64_t end, Act act) {
  const auto* tile = static_cast<const uint16_t*>(a.x) + first / kTileColumns * a.tile;
  for (int64_t column = first; column < end; column += kTileColumns, tile += a.tile)
    for (int64_t t = 0; t < a.out.count; ++t) act(t, column, tile + t * kTileColumns);
}

template <class T>
void widen_token(const PrepareArgs& a, const T* x, int64_t token) {
  float* const out = reinterpret_cast<float*>(const_cast<uint32_t*>(a.out.data) + token * a.out.steps);
  int64_t i = 0;
  for (; i + kLanes <= a.matrix->inputs; i += kLanes) store(out + i, load(x + i));
  for (; i < a.matrix->inputs; ++i) out[i] = widen(x[i]);
  for (; i < a.out.steps; ++i) out[i] = 0.0f;
}

void copy_token(const PrepareArgs& a, const uint16_t* x, int64_t token) {
  uint16_t* const out = reinterpret_cast<uint16_t*>(const_cast<uint32_t*>(a.out.data) + token * a.out.steps);
  memcpy(out, x, a.matrix->inputs * 2);
  memset(out + a.matrix->inputs, 0, (a.out.steps * 2 - a.matrix->inputs) * 2);
}

template <class T>
void sum_groups(const PrepareArgs& a, const T* x, int64_t token) {
  const PackedMatrix& m = *a.matrix;
  float* const sums = reinterpret_cast<float*>(const_cast<uint32_t*>(a.out.sums)) + token * m.groups();
  for (int64_t g = 0; g < m.groups(); ++g) {
    const int64_t first = g * m.group, count = m.group < m.inputs - first ? m.group : m.inputs - first;
    Vec sum{};
    for (int64_t i = 0; i < count; i += kPanel) {
      Vec part[kVecs];
      load_sixteen(x + first + i, count - i, part);
      for (int v = 0; v < kVecs; ++v) sum += part[v];
    }
    sums[g] = 0.0f;
    for (int i = 0; i < kLanes; ++i) sums[g] += sum[i];
  }
}

// As dgq's tokens are: to 8-bit integers of one scale, and back.
void round_token(const PrepareArgs& a, int64_t token) {
  float* const x = reinterpret_cast<float*>(const_cast<uint32_t*>(a.out.data) + token * a.out.steps);
  const int64_t inputs = a.matrix->inputs;
  const float most = largest_of(sizes_with(IntVec{}, x, inputs)), scale = scale_of(most), inverse = inverse_of(most);
  for (int64_t i = 0; i < inputs; i += kPanel) {
    Vec part[kVecs];
    load_sixteen(x + i, inputs - i, part);
    float some[kPanel];
    for (int v = 0; v < kVecs; ++v) store(some + v * kLanes, __builtin_convertvector(rounded(part[v] * inverse), Vec) * scale);
    memcpy(x + i, some, (inputs - i < kPanel ? inputs - i : kPanel) * 4);
  }
}

// A token times the low-rank term's right.
void multiply_right(const PrepareArgs& a, int64_t token) {
  const float* const x = reinterpret_cast<const float*>(a.out.data + token * a.out.steps);
  const uint16_t* right = part_of<uint16_t>(*a.matrix, 5);
  float* const low = const_cast<float*>(a.out.low) + token * a.out.rank;
  const int64_t inputs = a.matrix->inputs;
  for (int64_t k = 0; k < a.out.rank; ++k, right += inputs) {
    Vec sum{};
    int64_t i = 0;
    for (; i + kLanes <= inputs; i += kLanes) sum = fused(load(x + i), load_halves(right + i), sum);
    low[k] = total_of(sum);
    for (; i < inputs; ++i) low[k] = fused(x[i], half_value(right[i]), low[k]);
  }
}

template <class T>
void prepare_one(const PrepareArgs& a, int64_t token) {
  const T* const x = static_cast<const T*>(a.x) + token * a.stride;
  if (a.out.operand == Operand::s8) return quantize_token(a, x, token);
  if (a.out.sums) sum_groups(a, x, token);
  if (a.out.operand == Operand::f32) {
    widen_token(a, x, token);
    if (a.matrix->format == Format::dgq) round_token(a, token);
    if (a.out.rank) multiply_right(a, token);
    return;
  }
  if constexpr (sizeof(T) == 2) copy_token(a, x, token);
}

}  // namespace

namespace PAGODA_ISA {

void prepare_tokens(const PrepareArgs& a, int64_t first_token, int64_t end_token) {
  for (int64_t t = first_token; t < end_token; ++t) {
    if (a.dtype == Dtype::f32) prepare_one<float>(a, t);
    else prepare_one<uint16_t>(a, t);
  }
}

void size_tiles(const PrepareArgs& a, int64_t first, int64_t end, float* sizes) {
  IntVec most[kTileColumns] = {};
  each_line(a, first, end, [&](int64_t t, int64_t, const uint16_t* line) { most[t] = sizes_with(most[t], line, kTileColumns); });
  for (int64_t t = 0; t < a.out.count; ++t) sizes[t] = largest_of(most[t]);
}

void quantize_tiles(const PrepareArgs& a, int64_t first, int64_t end, const float* sizes, uint32_t* sums) {
  const Bytes order = order_of(*a.matrix);
  UintVec sum[kTileColumns] = {};
  float inverse[kTileColumns];
  for (int64_t t = 0; t < a.out.count; ++t) inverse[t] = inverse_of(sizes[t]);
  auto* const out = reinterpret_cast<uint8_t*>(const_cast<uint32_t*>(a.out.data));
  each_line(a, first, end, [&](int64_t t, int64_t column, const uint16_t* line) {
    sum[t] = quantize(sum[t], line, kTileColumns, kTileColumns, inverse[t], order, out + t * a.out.steps * 4 + column);
  });
  for (int64_t t = 0; t < a.out.count; ++t) sums[t] = 0u - offset_of(*a.matrix) * total_of(sum[t]);
  if (first > 0) return;
  for (int64_t t = 0; t < a.out.count; ++t) const_cast<float*>(a.out.scales)[t] = scale_of(sizes[t]);
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
