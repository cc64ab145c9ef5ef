// Numbers of encoded pages, for one instruction set (page_numbers.hpp).
#include "page_numbers.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

inline float half_at(const uint8_t* halves, int64_t i) {
  uint16_t x;
  memcpy(&x, halves + 2 * i, 2);
  return widen(x);
}

inline void halves_to(float* out, const uint8_t* halves, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = half_at(halves, i);
}

inline UintVec lane_numbers() {
  UintVec lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

// Codes d … d + kLanes - 1 of a row of kBits each, lowest bits first; d is a multiple of kLanes.
template <int kBits>
inline Vec codes_at(const uint8_t* row, int64_t d) {
  constexpr int kBytes = kLanes * kBits / 8;
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
template <int kBits, typename Value>
inline void row_of(const uint8_t* row, int64_t dim, float* out, Value value) {
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) store(out + d, value(codes_at<kBits>(row, d), d));
  for (; d < dim; ++d) out[d] = value(code_at<kBits>(row, d), d);
}

template <typename Value>
inline void row_of(int64_t bits, const uint8_t* row, int64_t dim, float* out, Value value) {
  if (bits == 2) row_of<2>(row, dim, out, value);
  else if (bits == 4) row_of<4>(row, dim, out, value);
  else row_of<8>(row, dim, out, value);
}

inline int64_t row_bytes(int64_t dim, int64_t bits) { return (dim * bits + 7) / 8; }

void channel_grid(const PageRow& r) {
  const int64_t dim = r.side->dim, bits = r.side->at[0], bytes = row_bytes(dim, bits);
  float scale[kMostDim], least[kMostDim];
  halves_to(scale, r.page + r.side->at[2], dim), halves_to(least, r.page + r.side->at[2] + 2 * dim, dim);
  for (int64_t s = 0; s < r.page_size; ++s)
    row_of(bits, r.page + r.side->at[1] + s * bytes, dim, r.out + s * dim,
           [&](auto code, int64_t d) { return code * number(code, scale, d) + number(code, least, d); });
}

void token_grid(const PageRow& r) {
  const int64_t dim = r.side->dim, bits = r.side->at[0], bytes = row_bytes(dim, bits), groups = (dim + 31) / 32;
  float grids[2 * (kMostDim / 32)];
  for (int64_t s = 0; s < r.page_size; ++s) {
    halves_to(grids, r.page + r.side->at[2] + s * 4 * groups, 2 * groups);
    row_of(bits, r.page + r.side->at[1] + s * bytes, dim, r.out + s * dim,
           [&](auto code, int64_t d) { return code * grids[d / 32] + grids[groups + d / 32]; });
  }
}

// The row of every slot: those in the mask lie together in four bits, the others in two.
template <typename High, typename Low>
void zip_rows(const PageRow& r, High high, Low low) {
  const uint8_t *mask = r.page + r.side->at[0], *four = r.page + r.side->at[1], *two = r.page + r.side->at[2];
  for (int64_t s = 0; s < r.page_size; ++s) {
    if (mask[s / 8] >> (s % 8) & 1) high(s, four), four += row_bytes(r.side->dim, 4);
    else low(s, two), two += row_bytes(r.side->dim, 2);
  }
}

void zip_keys(const PageRow& r) {
  const int64_t dim = r.side->dim;
  float least[kMostDim], span[kMostDim];
  halves_to(least, r.page + r.side->at[3], dim), halves_to(span, r.page + r.side->at[3] + 2 * dim, dim);
  const auto value = [&](float unit) {
    return [&, unit](auto code, int64_t d) { return code * unit * number(code, span, d) + number(code, least, d); };
  };
  zip_rows(r, [&](int64_t s, const uint8_t* row) { row_of<4>(row, dim, r.out + s * dim, value(1.0f / 15)); },
           [&](int64_t s, const uint8_t* row) { row_of<2>(row, dim, r.out + s * dim, value(1.0f / 3)); });
}

void zip_values(const PageRow& r) {
  const int64_t dim = r.side->dim;
  float roots[kMostDim];
  halves_to(roots, r.page + r.side->at[3], dim);
  const auto value = [&](int64_t s, float unit) {
    const float floor = half_at(r.page + r.side->at[4], 2 * s), width = half_at(r.page + r.side->at[4], 2 * s + 1);
    return [&roots, floor, step = width * unit](auto code, int64_t d) {
      return (code * step + floor) * number(code, roots, d);
    };
  };
  zip_rows(r, [&](int64_t s, const uint8_t* row) { row_of<4>(row, dim, r.out + s * dim, value(s, 1.0f / 15)); },
           [&](int64_t s, const uint8_t* row) { row_of<2>(row, dim, r.out + s * dim, value(s, 1.0f / 3)); });
}

void block_floats(const PageRow& r) {
  const int64_t dim = r.side->dim, bits = r.side->at[0], bytes = row_bytes(dim, bits), block = r.side->at[3];
  const int64_t blocks = (dim + block - 1) / block;
  const float zero = float(int64_t{1} << (bits - 1));
  float steps[kMostDim], row[kMostDim];
  for (int64_t s = 0; s < r.page_size; ++s) {
    const uint8_t* exponents = r.page + r.side->at[2] + s * blocks;
    for (int64_t b = 0; b < blocks; ++b) {
      const float step = __builtin_ldexpf(1.0f, int(exponents[b]) - 127 - int(bits - 1));
      for (int64_t d = b * block; d < (b + 1) * block && d < dim; ++d) steps[d] = step;
    }
    float* out = r.out + s * dim;
    row_of(bits, r.page + r.side->at[1] + s * bytes, dim, r.table ? row : out,
           [&](auto code, int64_t d) { return (code - zero) * number(code, steps, d); });
    if (r.table)
      for (int64_t d = 0; d < dim; ++d) out[int64_t(r.table[d])] = row[d];
  }
}

void coupled(const PageRow& r) {
  const int64_t dim = r.side->dim, groups = (dim + 3) / 4;
  const uint8_t* codes = r.page + r.side->at[0];
  for (int64_t s = 0; s < r.page_size; ++s)
    for (int64_t g = 0; g < groups; ++g) {
      const float* centre = r.table + (g * 256 + codes[s * groups + g]) * 4;
      for (int64_t d = 4 * g; d < 4 * g + 4 && d < dim; ++d) r.out[s * dim + d] = centre[d - 4 * g];
    }
}

// out += factor * row
inline void add(float* out, float factor, const float* row, int64_t dim) {
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) store(out + d, load(out + d) + factor * load(row + d));
  for (; d < dim; ++d) out[d] += factor * row[d];
}

void atoms(const PageRow& r) {
  const int64_t dim = r.side->dim, num = r.side->at[3];
  for (int64_t s = 0; s < r.page_size; ++s) {
    const uint8_t *index = r.page + r.side->at[0] + s * num, *weight = r.page + r.side->at[1] + s * num;
    const float unit = half_at(r.page + r.side->at[2], s);
    float* out = r.out + s * dim;
    memset(out, 0, 4 * dim);
    for (int64_t i = 0; i < num; ++i) add(out, int8_t(weight[i]) * unit, r.table + index[i] * dim, dim);
  }
}

void columns(const PageRow& r) {
  const int64_t dim = r.side->dim, num = r.side->at[2];
  const uint8_t *mask = r.page + r.side->at[0], *kept = r.page + r.side->at[1];
  memset(r.out, 0, 4 * r.page_size * dim);
  for (int64_t d = 0, at = 0; d < dim && at < num; ++d) {
    if (!(mask[d / 8] >> (d % 8) & 1)) continue;
    for (int64_t s = 0; s < r.page_size; ++s) r.out[s * dim + d] = half_at(kept, s * num + at);
    ++at;
  }
}

// out [4][kWide] = factors [4][rank] by table [rank][dim], kWide columns of it, in registers.
template <int kWide>
inline void product(const float* factors, int64_t rank, const float* table, int64_t dim, float* out) {
  Vec sum[4][kWide];
#pragma GCC unroll 8
  for (int i = 0; i < 4 * kWide; ++i) sum[i / kWide][i % kWide] = Vec{};
  for (int64_t c = 0; c < rank; ++c) {
#pragma GCC unroll 8
    for (int w = 0; w < kWide; ++w) {
      const Vec row = load(table + c * dim + w * kLanes);
#pragma GCC unroll 8
      for (int s = 0; s < 4; ++s) sum[s][w] += factors[s * rank + c] * row;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < 4 * kWide; ++i) store(out + (i / kWide) * dim + (i % kWide) * kLanes, sum[i / kWide][i % kWide]);
}

void basis(const PageRow& r) {
  const int64_t dim = r.side->dim, rank = r.side->at[1], group = r.side->at[2] > 1 ? r.side->at[2] : 1, share = rank / group;
  if (!r.table) return halves_to(r.out, r.page + r.side->at[0], r.page_size * dim);
  for (int64_t s = 0; s < r.page_size; s += 4) {
    const int64_t slots = r.page_size - s < 4 ? r.page_size - s : 4;
    float factors[4 * kMostDim];
    for (int64_t g = 0; g < group; ++g) {
      const uint8_t* page = (group > 1 ? r.of_head(r.head / group * group + g) : r.page) + r.side->at[0];
      for (int64_t i = 0; i < slots; ++i) halves_to(factors + i * rank + g * share, page + 2 * (s + i) * share, share);
    }
    float* out = r.out + s * dim;
    int64_t d = 0;
    if (slots == 4) {
      for (; d + 2 * kLanes <= dim; d += 2 * kLanes) product<2>(factors, rank, r.table + d, dim, out + d);
      for (; d + kLanes <= dim; d += kLanes) product<1>(factors, rank, r.table + d, dim, out + d);
    }
    for (; d < dim; ++d)
      for (int64_t i = 0; i < slots; ++i) {
        float sum = 0.0f;
        for (int64_t c = 0; c < rank; ++c) sum += factors[i * rank + c] * r.table[c * dim + d];
        out[i * dim + d] = sum;
      }
  }
}

void spread(const PageRow& r) {
  const int64_t dim = r.side->dim, width = r.side->at[1], first = int64_t(r.table[0]) * dim;
  for (int64_t d = 0; d < dim;) {  // the columns that lie on one page, at once
    const int64_t head = (first + d) / width, column = (first + d) % width;
    const int64_t many = width - column < dim - d ? width - column : dim - d;
    const uint8_t* from = r.of_head(head) + r.side->at[0];
    for (int64_t s = 0; s < r.page_size; ++s) halves_to(r.out + s * dim + d, from + 2 * (s * width + column), many);
    d += many;
  }
}

}  // namespace

namespace PAGODA_ISA {

void run_page_numbers(const PageRow& r) {
  switch (r.side->kind) {
    case CodeKind::channel_grid: channel_grid(r); break;
    case CodeKind::token_grid: token_grid(r); break;
    case CodeKind::zip_keys: zip_keys(r); break;
    case CodeKind::zip_values: zip_values(r); break;
    case CodeKind::block_floats: block_floats(r); break;
    case CodeKind::coupled: coupled(r); break;
    case CodeKind::atoms: atoms(r); break;
    case CodeKind::columns: columns(r); break;
    case CodeKind::basis: basis(r); break;
    case CodeKind::spread: spread(r); break;
  }
  if (!r.half) return;
  const int64_t count = r.page_size * r.side->dim;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(r.half + i, load(r.out + i));
  for (; i < count; ++i) narrow(r.out[i], r.half + i);
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
