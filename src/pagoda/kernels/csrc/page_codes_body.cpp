// Codes of pages, for one instruction set (page_codes.hpp). The bytes are those that torch would give: nothing is fused.
#include "page_codes.hpp"

#include "page_grids.hpp"
#include "page_pursuit.hpp"
#include "row_parts.hpp"

namespace pagoda {
namespace {

inline Vec minimum(Vec a, Vec b) { return a < b ? a : b; }

// The smallest and the largest of what it was shown; neither is a number where any of that was none.
struct Range {
  Vec low, high;
  IntVec none;

  Range(Vec a, Vec b) : low(a), high(b), none(a != a) {}
  void add(Vec a, Vec b) { low = minimum(low, a), high = maximum(high, b), none |= a != a; }
  Vec least() const { return select(none, splat(__builtin_nanf("")), low); }

  float least_of_all() const {
#if defined(__AVX512F__)
    if (_mm512_test_epi32_mask((__m512i)none, (__m512i)none)) return __builtin_nanf("");
    return _mm512_reduce_min_ps((__m512)low);
#else
    float lanes[kLanes];
    store(lanes, least());
    for (int i = 1; i < kLanes; ++i) lanes[0] = lanes[i] < lanes[0] || lanes[i] != lanes[i] ? lanes[i] : lanes[0];
    return lanes[0];
#endif
  }
  float most_of_all() const {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)high);
#else
    float lanes[kLanes];
    store(lanes, high);
    for (int i = 1; i < kLanes; ++i) lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
    return lanes[0];
#endif
  }
};

// A page's codes, a byte each, on their way to fields of kBits.
template <int kBits>
struct Codes {
  static constexpr int32_t kTop = (1 << kBits) - 1;
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  alignas(64) uint8_t row[kMostDim + 64];

  explicit Codes(int64_t dim) { memset(row + dim, 0, 64); }

  // Codes of so many steps, the first code being `low` of them: to nearest, ties to even (beside 1.5 * 2^23 a float has no fraction).
  void put(int64_t d, Vec steps, int32_t low, int64_t count) {
    steps = minimum(maximum(steps, splat(float(low))), splat(float(low + kTop)));
    const IntVec codes = ((IntVec)(steps + splat(12582912.0f)) - low) & kTop;
    const Bytes bytes = __builtin_convertvector(codes, Bytes);
    memcpy(row + d, &bytes, count);
  }

  void pack(int64_t bytes, uint8_t* to) const {
    if constexpr (kBits == 8) memcpy(to, row, bytes);
    else for (int64_t i = 0; i < bytes; ++i) {
      if constexpr (kBits == 4) {
        to[i] = uint8_t(row[2 * i] | row[2 * i + 1] << 4);
      } else {
        uint32_t four;
        memcpy(&four, row + 4 * i, 4);
        to[i] = uint8_t(four | four >> 6 | four >> 12 | four >> 18);
      }
    }
  }
};

inline Vec half_rounded(Vec x) { return rounded<uint16_t>(x); }
inline float half_rounded(float x) {
  uint16_t half;
  narrow(x, &half);
  return widen(half);
}
inline Vec step_of(Vec scale) { return maximum(scale, splat(1e-30f)); }

template <int kBits, typename In>
void channel_codes(const RawPage& r, const In* rows) {
  const int64_t dim = r.side->dim, bytes = row_bytes(dim, kBits);
  uint16_t grid[2 * kMostDim];
  float steps[kMostDim], leasts[kMostDim];
  sweep(0, dim, [&](int64_t d, int64_t count) {
    Range range(take(rows + d, count), take(rows + d, count));
    for (int64_t s = 1; s < r.page_size; ++s) {
      const Vec x = take(rows + s * dim + d, count);
      range.add(x, x);
    }
    const Vec least = half_rounded(range.least()), scale = half_rounded((range.high - least) / splat(float(Codes<kBits>::kTop)));
    put(grid + d, scale, count), put(grid + dim + d, least, count);
    put(steps + d, step_of(scale), count), put(leasts + d, least, count);
  });
  memcpy(r.page + r.side->at[2], grid, 4 * dim);
  Codes<kBits> codes(dim);
  for (int64_t s = 0; s < r.page_size; ++s, rows += dim) {
    sweep(0, dim, [&](int64_t d, int64_t count) {
      codes.put(d, (take(rows + d, count) - take(leasts + d, count)) / take(steps + d, count), 0, count);
    });
    codes.pack(bytes, r.page + r.side->at[1] + s * bytes);
  }
}

template <int kBits, typename In>
void token_codes(const RawPage& r, const In* rows) {
  const int64_t dim = r.side->dim, bytes = row_bytes(dim, kBits), groups = (dim + kGridGroup - 1) / kGridGroup;
  uint16_t grid[2 * (kMostDim / kGridGroup)];
  Codes<kBits> codes(dim);
  for (int64_t s = 0; s < r.page_size; ++s, rows += dim) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = g * kGridGroup, end = first + kGridGroup < dim ? first + kGridGroup : dim;
      Range range(splat(kInf), splat(-kInf));
      sweep(first, end, [&](int64_t d, int64_t count) {
        if (count == kLanes) range.add(load(rows + d), load(rows + d));
        else range.add(load_part(rows + d, count, kInf), load_part(rows + d, count, -kInf));
      });
      const float least = half_rounded(range.least_of_all());
      const float scale = half_rounded((range.most_of_all() - least) / float(Codes<kBits>::kTop));
      narrow(scale, grid + g), narrow(least, grid + groups + g);
      const Vec step = step_of(splat(scale)), below = splat(least);
      sweep(first, end, [&](int64_t d, int64_t count) { codes.put(d, (take(rows + d, count) - below) / step, 0, count); });
    }
    memcpy(r.page + r.side->at[2] + 4 * groups * s, grid, 4 * groups);
    codes.pack(bytes, r.page + r.side->at[1] + s * bytes);
  }
}

inline int32_t most_of_all(IntVec x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32((__m512i)x);
#else
  int32_t most = x[0];
  for (int i = 1; i < kLanes; ++i) most = x[i] > most ? x[i] : most;
  return most;
#endif
}

// The largest number of a block is below 2^(exponent - 127): its own exponent and one, from 2^-112 on. What is no number has the
// highest exponent and the lowest code, which together are read as -inf.
template <int kBits, typename In>
void float_codes(const RawPage& r, const In* rows) {
  const int64_t dim = r.side->dim, bytes = row_bytes(dim, kBits), block = r.side->at[3], blocks = (dim + block - 1) / block;
  const float* const places = r.table();
  int from[kMostDim];
  In ordered[kMostDim];
  if (places)
    for (int64_t d = 0; d < dim; ++d) from[d] = int(places[d]);
  const Lookup<In> order(places ? from : nullptr, dim);
  Codes<kBits> codes(dim);
  for (int64_t s = 0; s < r.page_size; ++s, rows += dim) {
    const In* row = places ? ordered : rows;
    if (order.serves) order.look_up((const uint16_t*)rows, dim, ordered);
    else if (places)
      for (int64_t d = 0; d < dim; ++d) ordered[d] = rows[from[d]];
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * block, end = first + block < dim ? first + block : dim;
      IntVec sizes{};  // of floats without their signs, as integers, in the same order
      sweep(first, end, [&](int64_t d, int64_t count) {
        const IntVec size = (IntVec)take(row + d, count) & 0x7fffffff;
        sizes = size > sizes ? size : sizes;
      });
      int32_t exponent = most_of_all(sizes) >> 23;
      exponent = (exponent < 14 ? 14 : exponent > 254 ? 254 : exponent) + 1;
      const uint32_t bits = uint32_t(exponent - (kBits - 1)) << 23;
      float step;
      memcpy(&step, &bits, 4);
      const Vec each = splat(1.0f / step);
      sweep(first, end, [&](int64_t d, int64_t count) {
        codes.put(d, take(row + d, count) * each, -(1 << (kBits - 1)), count);
      });
      r.page[r.side->at[2] + s * blocks + b] = uint8_t(exponent);
    }
    codes.pack(bytes, r.page + r.side->at[1] + s * bytes);
  }
}

constexpr int64_t kCoupled = 4, kCentres = 256;

// Every other number of two registers.
inline Vec every_other(Vec a, Vec b, int first) {
  IntVec from;
  for (int i = 0; i < kLanes; ++i) from[i] = 2 * i + first;
  return __builtin_shuffle(a, b, from);
}
inline Vec evens(Vec a, Vec b) { return every_other(a, b, 0); }
inline Vec odds(Vec a, Vec b) { return every_other(a, b, 1); }

// The centres of one group, a register for each of their channels, and half of their squares: what is the nearest is the largest product
// less that, the first of equals. Sums are made two by two.
struct Centres {
  alignas(64) float at[kCoupled][kCentres], half[kCentres];

  explicit Centres(const float* table) {  // [kCentres][kCoupled]
    for (int64_t c = 0; c < kCentres; c += kLanes, table += kCoupled * kLanes) {
      const Vec w = load(table), x = load(table + kLanes), y = load(table + 2 * kLanes), z = load(table + 3 * kLanes);
      const Vec even[] = {evens(w, x), evens(y, z)}, odd[] = {odds(w, x), odds(y, z)};
      const Vec channels[] = {evens(even[0], even[1]), evens(odd[0], odd[1]), odds(even[0], even[1]), odds(odd[0], odd[1])};
      Vec square[kCoupled];
      for (int64_t d = 0; d < kCoupled; ++d) store(at[d] + c, channels[d]), square[d] = channels[d] * channels[d];
      store(half + c, splat(0.5f) * ((square[0] + square[1]) + (square[2] + square[3])));
    }
  }

  // Codes of kMany samples [kCoupled] that lie `apart` from each other.
  template <int kMany>
  void nearest(const float* samples, int64_t apart, uint8_t* codes, int64_t codes_apart) const {
    Vec most[kMany];
    IntVec found[kMany], here;  // the registers in which each lane's largest was, counted in centres
    for (int i = 0; i < kLanes; ++i) here[i] = i;
#pragma GCC unroll 8
    for (int s = 0; s < kMany; ++s) most[s] = splat(-kInf), found[s] = here;
    for (int64_t c = 0; c < kCentres; c += kLanes, here += kLanes) {
#pragma GCC unroll 8
      for (int s = 0; s < kMany; ++s) {
        const float* const x = samples + s * apart;
        const Vec first = splat(x[0]) * load(at[0] + c) + splat(x[1]) * load(at[1] + c);
        const Vec other = splat(x[2]) * load(at[2] + c) + splat(x[3]) * load(at[3] + c);
        const Vec near = (first + other) - load(half + c);
        const IntVec better = near > most[s];
        most[s] = select(better, near, most[s]), found[s] = better ? here : found[s];
      }
    }
    for (int s = 0; s < kMany; ++s) codes[s * codes_apart] = uint8_t(first_of(most[s], found[s]));
  }

  static int32_t first_of(Vec most, IntVec found) {
#if defined(__AVX512F__)
    const float top = _mm512_reduce_max_ps((__m512)most);
    const __mmask16 equal = _mm512_cmp_ps_mask((__m512)most, _mm512_set1_ps(top), _CMP_EQ_OQ);
    return _mm512_mask_reduce_min_epi32(equal, (__m512i)found);
#else
    int lane = 0;
    for (int i = 1; i < kLanes; ++i)
      if (most[i] > most[lane] || (most[i] == most[lane] && found[i] < found[lane])) lane = i;
    return found[lane];
#endif
  }
};

template <typename In>
void coupled_codes(const RawPage& r, const In* rows) {
  const int64_t dim = r.side->dim, groups = (dim + kCoupled - 1) / kCoupled;
  uint8_t* const codes = r.page + r.side->at[0];
  for (int64_t g = 0; g < groups; ++g) {
    const Centres centres(r.table() + g * kCentres * kCoupled);
    const int64_t first = g * kCoupled, num = first + kCoupled < dim ? kCoupled : dim - first;
    for (int64_t s = 0; s < r.page_size; s += 4) {
      const int64_t many = r.page_size - s < 4 ? r.page_size - s : 4;
      float samples[4 * kCoupled] = {};
      for (int64_t i = 0; i < many; ++i)
        for (int64_t d = 0; d < num; ++d) samples[i * kCoupled + d] = widen(rows[(s + i) * dim + first + d]);
      if (many == 4) centres.nearest<4>(samples, kCoupled, codes + s * groups + g, groups);
      else
        for (int64_t i = 0; i < many; ++i) centres.nearest<1>(samples + i * kCoupled, 0, codes + (s + i) * groups + g, 0);
    }
  }
}

template <typename In>
void encode(const RawPage& r, const In* rows) {
  if (r.side->kind == CodeKind::coupled) return coupled_codes(r, rows);
  if (r.side->kind == CodeKind::atoms) return atom_codes(r, rows);
  const bool two = r.side->at[0] == 2;
  if (r.side->kind == CodeKind::block_floats) {
    if (r.side->at[0] == 8) return float_codes<8>(r, rows);
    return two ? float_codes<2>(r, rows) : float_codes<4>(r, rows);
  }
  if (r.side->kind == CodeKind::channel_grid) return two ? channel_codes<2>(r, rows) : channel_codes<4>(r, rows);
  return two ? token_codes<2>(r, rows) : token_codes<4>(r, rows);
}

}  // namespace

namespace PAGODA_ISA {

void run_page_codes(const RawPage& r) {
  if (r.half) encode(r, static_cast<const uint16_t*>(r.rows));
  else encode(r, static_cast<const float*>(r.rows));
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
