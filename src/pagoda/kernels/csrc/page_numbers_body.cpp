// Numbers of encoded pages, for one instruction set (page_numbers.hpp). Grids have ways of their own where 32 columns of bfloat16 are made
// at once (page_grids.hpp).
#include "page_numbers.hpp"

#include "page_grids.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

inline float half_at(const uint8_t* halves, int64_t i) {
  uint16_t x;
  memcpy(&x, halves + 2 * i, 2);
  return widen(x);
}

inline void halves_to(float* out, const uint8_t* halves, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load((const uint16_t*)(halves + 2 * i)));
  for (; i < count; ++i) out[i] = half_at(halves, i);
}

// A register of floats as the page's reader wants them.
inline void put(float* out, Vec x) { store(out, x); }
inline void put(uint16_t* out, Vec x) {
#if PAGODA_DPBF16
  _mm256_storeu_si256((__m256i*)out, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
  store(out, x);
#endif
}
inline void put(float* out, float x) { *out = x; }
inline void put(uint16_t* out, float x) { narrow(x, out); }

// Numbers that are bfloat16 already.
inline void put_halves(float* out, const uint8_t* halves, int64_t count) { halves_to(out, halves, count); }
inline void put_halves(uint16_t* out, const uint8_t* halves, int64_t count) { memcpy(out, halves, 2 * count); }

inline UintVec lane_numbers() {
  UintVec lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

// Codes d … d + kLanes - 1 of a row of kBits each, lowest bits first; d is a multiple of kLanes.
template <int kBits>
inline Vec codes_at(const uint8_t* row, int64_t d) {
  constexpr int kBytes = kLanes * kBits / 8;
#if PAGODA_DPBF16
  if constexpr (kBits < 8) return narrow_codes<kBits>(row + d * kBits / 8);
#endif
  const UintVec lanes = lane_numbers();
  if constexpr (kBits == 8) {
    typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
    Bytes bytes;
    memcpy(&bytes, row + d, kLanes);
    return __builtin_convertvector(__builtin_convertvector(bytes, UintVec), Vec);
  } else {
    uint64_t word = 0;
    memcpy(&word, row + d * kBits / 8, kBytes);
    constexpr uint32_t kIn32 = 32 / kBits;
    const UintVec low = uint32_t(word) - UintVec{}, high = uint32_t(word >> 32) - UintVec{};
    const UintVec part = lanes < kIn32 ? low : high;
    const UintVec codes = (part >> ((lanes & (kIn32 - 1)) * kBits)) & ((1u << kBits) - 1);
    return __builtin_convertvector((IntVec)codes, Vec);
  }
}

template <int kBits>
inline float code_at(const uint8_t* row, int64_t d) {
  return float((row[d * kBits / 8] >> (d * kBits % 8)) & ((1 << kBits) - 1));
}

inline Vec number(Vec, const float* from, int64_t d) { return load(from + d); }
inline float number(float, const float* from, int64_t d) { return from[d]; }

// out[d] = value(code, d) over a row, many lanes at once and then one by one.
template <int kBits, typename Out, typename Value>
inline void row_of(const uint8_t* row, int64_t dim, Out* out, Value value) {
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) put(out + d, value(codes_at<kBits>(row, d), d));
  for (; d < dim; ++d) put(out + d, value(code_at<kBits>(row, d), d));
}

template <typename Out, typename Value>
inline void row_of(int64_t bits, const uint8_t* row, int64_t dim, Out* out, Value value) {
  if (bits == 2) row_of<2>(row, dim, out, value);
  else if (bits == 4) row_of<4>(row, dim, out, value);
  else row_of<8>(row, dim, out, value);
}

template <typename Out>
void channel_grid(const EncodedPage& r, Out* out) {
  const int64_t dim = r.side->dim, bits = r.side->at[0], bytes = row_bytes(dim, bits);
  const uint8_t *codes = r.page + r.side->at[1], *grids = r.page + r.side->at[2];
  float scale[kMostDim], least[kMostDim];
  halves_to(scale, grids, dim), halves_to(least, grids + 2 * dim, dim);
  for (int64_t s = 0; s < r.page_size; ++s)
    row_of(bits, codes + s * bytes, dim, out + s * r.stride,
           [&](auto code, int64_t d) { return fused(code, number(code, scale, d), number(code, least, d)); });
}

template <typename Out>
void token_grid(const EncodedPage& r, Out* out) {
  const int64_t dim = r.side->dim, bits = r.side->at[0], bytes = row_bytes(dim, bits), groups = (dim + kGridGroup - 1) / kGridGroup;
  float grids[2 * (kMostDim / kGridGroup)];
  for (int64_t s = 0; s < r.page_size; ++s) {
    halves_to(grids, r.page + r.side->at[2] + s * 4 * groups, 2 * groups);
    row_of(bits, r.page + r.side->at[1] + s * bytes, dim, out + s * r.stride,
           [&](auto code, int64_t d) { return fused(code, grids[d / kGridGroup], grids[groups + d / kGridGroup]); });
  }
}

// The row of every slot: those in the mask lie together in four bits, the others in two.
template <typename High, typename Low>
void zip_rows(const EncodedPage& r, High high, Low low) {
  const uint8_t *mask = r.page + r.side->at[0], *four = r.page + r.side->at[1], *two = r.page + r.side->at[2];
  for (int64_t s = 0; s < r.page_size; ++s) {
    if (mask[s / 8] >> (s % 8) & 1) high(s, four), four += row_bytes(r.side->dim, 4);
    else low(s, two), two += row_bytes(r.side->dim, 2);
  }
}

template <typename Out>
void zip_keys(const EncodedPage& r, Out* out) {
  const int64_t dim = r.side->dim;
  float least[kMostDim], span[kMostDim];
  halves_to(least, r.page + r.side->at[3], dim), halves_to(span, r.page + r.side->at[3] + 2 * dim, dim);
  const auto value = [&](float unit) {
    return [&, unit](auto code, int64_t d) { return fused(code * unit, number(code, span, d), number(code, least, d)); };
  };
  zip_rows(r, [&](int64_t s, const uint8_t* row) { row_of<4>(row, dim, out + s * r.stride, value(1.0f / 15)); },
           [&](int64_t s, const uint8_t* row) { row_of<2>(row, dim, out + s * r.stride, value(1.0f / 3)); });
}

template <typename Out>
void zip_values(const EncodedPage& r, Out* out) {
  const int64_t dim = r.side->dim;
  float roots[kMostDim];
  halves_to(roots, r.page + r.side->at[3], dim);
  const auto value = [&](int64_t s, float unit) {
    const float floor = half_at(r.page + r.side->at[4], 2 * s), width = half_at(r.page + r.side->at[4], 2 * s + 1);
    return [&roots, floor, step = width * unit](auto code, int64_t d) {
      return fused(code, step, floor) * number(code, roots, d);
    };
  };
  zip_rows(r, [&](int64_t s, const uint8_t* row) { row_of<4>(row, dim, out + s * r.stride, value(s, 1.0f / 15)); },
           [&](int64_t s, const uint8_t* row) { row_of<2>(row, dim, out + s * r.stride, value(s, 1.0f / 3)); });
}

// 2^(exponent - 127 - down), which may be no normal number.
inline float step_of(uint8_t exponent, int down) {
  if (exponent <= down) return __builtin_ldexpf(1.0f, int(exponent) - 127 - down);
  const uint32_t bits = uint32_t(exponent - down) << 23;
  float step;
  memcpy(&step, &bits, 4);
  return step;
}

template <typename Out>
void block_floats(const EncodedPage& r, Out* out) {
  const int64_t dim = r.side->dim, bits = r.side->at[0], bytes = row_bytes(dim, bits), block = r.side->at[3];
  const int64_t blocks = (dim + block - 1) / block;
  const float zero = float(int64_t{1} << (bits - 1)), *const places = r.table();
  float steps[kMostDim];
  Out row[kMostDim] = {};
  int place[kMostDim], from[kMostDim];
  if (places)
    for (int64_t d = 0; d < dim; ++d) place[d] = int(places[d]), from[place[d]] = int(d);
  const Lookup<Out> order(places ? from : nullptr, dim);
  for (int64_t s = 0; s < r.page_size; ++s, out += r.stride) {
    const uint8_t* exponents = r.page + r.side->at[2] + s * blocks;
    for (int64_t b = 0; b < blocks; ++b) {
      const float step = step_of(exponents[b], int(bits - 1));
      const int64_t end = (b + 1) * block < dim ? (b + 1) * block : dim;
      int64_t d = b * block;
      for (; d + kLanes <= end; d += kLanes) store(steps + d, splat(step));
      for (; d < end; ++d) steps[d] = step;
    }
    const auto value = [&](auto code, int64_t d) { return (code - zero) * number(code, steps, d); };
    const uint8_t* codes = r.page + r.side->at[1] + s * bytes;
    if (!places) {
      row_of(bits, codes, dim, out, value);
      continue;
    }
    row_of(bits, codes, dim, row, value);
    if (order.serves) order.look_up(row, dim, out);
    else
      for (int64_t d = 0; d < dim; ++d) out[place[d]] = row[d];
  }
}

// A register of four floats from each of so many places. (Stored one by one and loaded together they would wait for each other.)
template <int kNum, typename Place>
inline Vec fours(Place place) {
#if defined(__AVX512F__)
  __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(place(0)));
  x = _mm512_insertf32x4(x, _mm_loadu_ps(place(1)), 1), x = _mm512_insertf32x4(x, _mm_loadu_ps(place(2)), 2);
  return (Vec)_mm512_insertf32x4(x, _mm_loadu_ps(place(3)), 3);
#else
  float x[4 * kNum];
  for (int i = 0; i < kNum; ++i) memcpy(x + 4 * i, place(i), 16);
  return load(x);
#endif
}

template <typename Out>
void coupled(const EncodedPage& r, Out* out) {
  const int64_t dim = r.side->dim, groups = (dim + 3) / 4;
  const uint8_t* codes = r.page + r.side->at[0];
  const float* const table = r.table();
  const auto centre = [&](int64_t g) { return table + (g * 256 + codes[g]) * 4; };
  for (int64_t s = 0; s < r.page_size; ++s, codes += groups, out += r.stride) {
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) put(out + d, fours<kLanes / 4>([&](int64_t i) { return centre(d / 4 + i); }));
    for (; d < dim; ++d) put(out + d, centre(d / 4)[d % 4]);
  }
}

template <typename Out>
void atoms(const EncodedPage& r, Out* out) {
  const int64_t dim = r.side->dim, num = r.side->at[3];
  const float* const table = r.table();
  for (int64_t s = 0; s < r.page_size; ++s, out += r.stride) {
    const uint8_t *index = r.page + r.side->at[0] + s * num, *weight = r.page + r.side->at[1] + s * num;
    const float unit = half_at(r.page + r.side->at[2], s);
    int64_t d = 0;
    const auto part = [&](auto wide) {  // so many registers of columns at once
      constexpr int kWide = decltype(wide)::value;
      for (; d + kWide * kLanes <= dim; d += kWide * kLanes) {
        Vec sum[kWide] = {};
        for (int64_t i = 0; i < num; ++i) {
          const float factor = int8_t(weight[i]) * unit, *const row = table + index[i] * dim + d;
#pragma GCC unroll 4
          for (int w = 0; w < kWide; ++w) sum[w] = fused(load(row + w * kLanes), factor, sum[w]);
        }
#pragma GCC unroll 4
        for (int w = 0; w < kWide; ++w) put(out + d + w * kLanes, sum[w]);
      }
    };
    part(Count<4>{}), part(Count<1>{});
    for (; d < dim; ++d) {
      float sum = 0.0f;
      for (int64_t i = 0; i < num; ++i) sum = fused(int8_t(weight[i]) * unit, table[index[i] * dim + d], sum);
      put(out + d, sum);
    }
  }
}

template <typename Out>
void columns(const EncodedPage& r, Out* out) {
  const int64_t dim = r.side->dim, num = r.side->at[2];
  const uint8_t *mask = r.page + r.side->at[0], *kept = r.page + r.side->at[1];
  int place[kMostDim], from[kMostDim], found = 0;
  for (int64_t d = 0; d < dim; ++d) {
    const bool there = found < num && mask[d / 8] >> (d % 8) & 1;
    from[d] = there ? found : -1;
    if (there) place[found++] = int(d);
  }
  const Lookup<Out> order(from, dim);
  for (int64_t s = 0; s < r.page_size; ++s, kept += 2 * num, out += r.stride) {
    if (order.serves) {
      order.look_up((const uint16_t*)kept, num, out);
      continue;
    }
    memset(out, 0, sizeof(Out) * dim);
    for (int i = 0; i < found; ++i) put_halves(out + place[i], kept + 2 * i, 1);
  }
}

// out [4][kWide registers] = factors [4][rank] by table [rank][dim], kWide registers of it.
template <int kWide, typename Out>
inline void product(const float* factors, int64_t rank, const float* table, int64_t dim, Out* out, int64_t stride) {
  Vec sum[4][kWide];
#pragma GCC unroll 8
  for (int i = 0; i < 4 * kWide; ++i) sum[i / kWide][i % kWide] = Vec{};
  for (int64_t c = 0; c < rank; ++c) {
#pragma GCC unroll 8
    for (int w = 0; w < kWide; ++w) {
      const Vec row = load(table + c * dim + w * kLanes);
#pragma GCC unroll 8
      for (int s = 0; s < 4; ++s) sum[s][w] = fused(row, factors[s * rank + c], sum[s][w]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < 4 * kWide; ++i) put(out + (i / kWide) * stride + (i % kWide) * kLanes, sum[i / kWide][i % kWide]);
}

template <typename Out>
void basis(const EncodedPage& r, Out* out) {
  const int64_t dim = r.side->dim, rank = r.side->at[1], group = r.side->at[2] > 1 ? r.side->at[2] : 1, share = rank / group;
  const float* const table = r.table();
  if (!table) {
    for (int64_t s = 0; s < r.page_size; ++s) put_halves(out + s * r.stride, r.page + r.side->at[0] + 2 * s * dim, dim);
    return;
  }
  for (int64_t s = 0; s < r.page_size; s += 4, out += 4 * r.stride) {
    const int64_t slots = r.page_size - s < 4 ? r.page_size - s : 4;
    float factors[4 * kMostDim];
    for (int64_t g = 0; g < group; ++g) {
      const uint8_t* page = (group > 1 ? r.of_head(r.head / group * group + g) : r.page) + r.side->at[0];
      for (int64_t i = 0; i < slots; ++i) halves_to(factors + i * rank + g * share, page + 2 * (s + i) * share, share);
    }
    int64_t d = 0;
    if (slots == 4) {
      for (; d + 2 * kLanes <= dim; d += 2 * kLanes) product<2>(factors, rank, table + d, dim, out + d, r.stride);
      for (; d + kLanes <= dim; d += kLanes) product<1>(factors, rank, table + d, dim, out + d, r.stride);
    }
    for (; d < dim; ++d)
      for (int64_t i = 0; i < slots; ++i) {
        float sum = 0.0f;
        for (int64_t c = 0; c < rank; ++c) sum = fused(factors[i * rank + c], table[c * dim + d], sum);
        put(out + i * r.stride + d, sum);
      }
  }
}

template <typename Out>
void spread(const EncodedPage& r, Out* out) {
  const int64_t dim = r.side->dim, width = r.side->at[1], first = int64_t(r.table()[0]) * dim;
  for (int64_t d = 0; d < dim;) {  // the columns that lie on one page, at once
    const int64_t head = (first + d) / width, column = (first + d) % width;
    const int64_t many = width - column < dim - d ? width - column : dim - d;
    const uint8_t* from = r.of_head(head) + r.side->at[0];
    for (int64_t s = 0; s < r.page_size; ++s) put_halves(out + s * r.stride + d, from + 2 * (s * width + column), many);
    d += many;
  }
}

template <typename Out>
void decode(const EncodedPage& r) {
  Out* const out = static_cast<Out*>(r.out);
  switch (r.side->kind) {
    case CodeKind::channel_grid: return channel_grid(r, out);
    case CodeKind::token_grid: return token_grid(r, out);
    case CodeKind::zip_keys: return zip_keys(r, out);
    case CodeKind::zip_values: return zip_values(r, out);
    case CodeKind::block_floats: return block_floats(r, out);
    case CodeKind::coupled: return coupled(r, out);
    case CodeKind::atoms: return atoms(r, out);
    case CodeKind::columns: return columns(r, out);
    case CodeKind::basis: return basis(r, out);
    case CodeKind::spread: return spread(r, out);
  }
}

}  // namespace

namespace PAGODA_ISA {

void run_page_numbers(const EncodedPage& r) {
  if (!r.half) return decode<float>(r);
#if PAGODA_DPBF16
  if (wide_grid(r)) return;
#endif
  decode<uint16_t>(r);
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
