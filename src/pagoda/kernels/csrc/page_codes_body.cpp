// Codes of pages, for one instruction set (page_codes.hpp). The bytes are those that torch would give: nothing is fused.
#include "page_codes.hpp"

#include "page_grids.hpp"
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
  static constexpr float kTop = (1 << kBits) - 1;
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  alignas(64) uint8_t row[kMostDim + 64];

  explicit Codes(int64_t dim) { memset(row + dim, 0, 64); }

  // Codes of numbers that lie `above` the least: to nearest, ties to even (beside 1.5 * 2^23 a float has no fraction).
  void put(int64_t d, Vec above, Vec step, int64_t count) {
    const Vec steps = minimum(maximum(above / step, Vec{}), splat(kTop));
    const IntVec codes = (IntVec)(steps + splat(12582912.0f)) & ((1 << kBits) - 1);
    const Bytes bytes = __builtin_convertvector(codes, Bytes);
    memcpy(row + d, &bytes, count);
  }

  void pack(int64_t bytes, uint8_t* to) const {
    for (int64_t i = 0; i < bytes; ++i) {
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
    const Vec least = half_rounded(range.least()), scale = half_rounded((range.high - least) / splat(Codes<kBits>::kTop));
    put(grid + d, scale, count), put(grid + dim + d, least, count);
    put(steps + d, step_of(scale), count), put(leasts + d, least, count);
  });
  memcpy(r.page + r.side->at[2], grid, 4 * dim);
  Codes<kBits> codes(dim);
  for (int64_t s = 0; s < r.page_size; ++s, rows += dim) {
    sweep(0, dim, [&](int64_t d, int64_t count) {
      codes.put(d, take(rows + d, count) - take(leasts + d, count), take(steps + d, count), count);
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
      const float scale = half_rounded((range.most_of_all() - least) / Codes<kBits>::kTop);
      narrow(scale, grid + g), narrow(least, grid + groups + g);
      const Vec step = step_of(splat(scale)), below = splat(least);
      sweep(first, end, [&](int64_t d, int64_t count) { codes.put(d, take(rows + d, count) - below, step, count); });
    }
    memcpy(r.page + r.side->at[2] + 4 * groups * s, grid, 4 * groups);
    codes.pack(bytes, r.page + r.side->at[1] + s * bytes);
  }
}

template <typename In>
void encode(const RawPage& r, const In* rows) {
  const bool two = r.side->at[0] == 2;
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
