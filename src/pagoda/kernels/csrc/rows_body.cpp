// Rows of a batch for one instruction set; see rows.hpp. Sums of a row run over lanes in a fixed order, so a row's result
// depends on nothing but the row.

#include "fetch.hpp"
#include "row_parts.hpp"
#include "rows.hpp"

namespace pagoda {
namespace {

// ---- norms -----------------------------------------------------------------------------------------------------------

// The last pass of a norm without bias by twos, as far as there are whole ones; where it ends.
int64_t scale_twos(const NormArgs& a, const uint16_t* x, uint16_t* out, const uint16_t* weight, float mean, float scale) {
  const auto one = [&](Vec v, Vec w) __attribute__((always_inline)) {
    Vec y = (v - splat(mean)) * scale;
    if (a.round_first) y = rounded_result(y);
    if (weight) y = y * (a.offset == 0.0f ? w : w + splat(a.offset));
    return y;
  };
  int64_t i = 0;
  for (; i + 2 * kLanes <= a.dim; i += 2 * kLanes) {
    const Twos v = load_twos(x + i), w = weight ? load_twos(weight + i) : Twos{};
    store_twos(out + i, {one(v.even, w.even), one(v.odd, w.odd)});
  }
  return i;
}

template <typename T>
void norm_row(const NormArgs& a, const T* x, T* out, const T* weight, const T* bias) {
  Vec sum{};
  float mean = 0.0f;
  if (a.centred) {
    sweep(0, a.dim, [&](int64_t i, int64_t n) { sum += take(x + i, n); });
    mean = total(sum) / float(a.dim);
    sum = Vec{};
  }
  sweep(0, a.dim, [&](int64_t i, int64_t n) {
    const Vec v = n == kLanes ? load(x + i) - splat(mean) : load_part(x + i, n, mean) - splat(mean);
    sum += v * v;
  });
  const float scale = 1.0f / __builtin_sqrtf(total(sum) / float(a.dim) + a.eps);
  int64_t done = 0;
  if constexpr (sizeof(T) == 2)
    if (!bias) done = scale_twos(a, x, out, weight, mean, scale);
  sweep(done, a.dim, [&](int64_t i, int64_t n) {
    Vec y = (take(x + i, n) - splat(mean)) * scale;
    if (a.round_first) y = rounded<T>(y);
    if (weight) y = y * (a.offset == 0.0f ? take(weight + i, n) : take(weight + i, n) + splat(a.offset));
    if (bias) y = (a.round_first ? rounded<T>(y) : y) + take(bias + i, n);
    put(out + i, y, n);
  });
}

template <typename T>
void norm_rows_of(const NormArgs& a, int64_t first, int64_t end) {
  const T* const weight = static_cast<const T*>(a.weight);
  const T* const bias = static_cast<const T*>(a.bias);
  for (int64_t row = first; row < end; ++row)
    for (int64_t part = 0; part < a.parts; ++part)
      norm_row<T>(a, static_cast<const T*>(a.x) + row * a.row_stride + part * a.dim,
                  static_cast<T*>(a.out) + row * a.out_stride + part * a.dim,
                  weight ? weight + part * a.weight_stride : nullptr, bias ? bias + part * a.weight_stride : nullptr);
}

// ---- rotation --------------------------------------------------------------------------------------------------------

// A: the type of the angles. Where it equals T, products are rounded to T before they are added, as the reference's are.
template <typename T, typename A, bool kRound>
inline void turn(Vec& first, Vec& second, Vec c, Vec s) {
  const auto round = [](Vec x) { return kRound ? rounded<T>(x) : x; };
  const Vec low = round(first * c) - round(second * s);
  second = round(second * c) + round(first * s);
  first = low;
}

inline void turn_results(Vec& first, Vec& second, Vec c, Vec s) {  // not rounded at the end
  const Vec low = rounded_result(first * c) - rounded_result(second * s);
  second = rounded_result(second * c) + rounded_result(first * s);
  first = low;
}

// Pairs of every head of a row by twos, as far as there are whole ones; where they end.
inline int64_t turn_twos(const RotaryArgs& a, uint16_t* row, const uint16_t* cos, const uint16_t* sin) {
  int64_t i = 0;
  for (; i + 2 * kLanes <= a.pairs; i += 2 * kLanes) {
    const Twos c = load_twos(cos + i), s = load_twos(sin + i);
    for (int64_t head = 0; head < a.heads; ++head) {
      uint16_t *const p = row + head * a.dim + i, *const q = p + a.pairs;
      Twos x = load_twos(p), y = load_twos(q);
      turn_results(x.even, y.even, c.even, s.even), turn_results(x.odd, y.odd, c.odd, s.odd);
      store_twos(p, x), store_twos(q, y);
    }
  }
  return i;
}

template <typename T, typename A>
void rotary_rows_of(const RotaryArgs& a, int64_t first, int64_t end) {
  constexpr bool kRound = sizeof(T) == sizeof(A);
  for (int64_t row = first; row < end; ++row) {
    const int64_t position = a.positions ? a.positions[row] : row;
    const A* const cos = static_cast<const A*>(a.cos) + position * a.pairs;
    const A* const sin = static_cast<const A*>(a.sin) + position * a.pairs;
    int64_t done = 0;
    if constexpr (kRound && sizeof(T) == 2)
      if (!a.interleaved) done = turn_twos(a, static_cast<T*>(a.x) + row * a.row_stride, cos, sin);
    for (int64_t head = 0; head < a.heads && done < a.pairs; ++head) {
      T* const x = static_cast<T*>(a.x) + row * a.row_stride + head * a.dim;
      if (!a.interleaved) {
        sweep(done, a.pairs, [&](int64_t i, int64_t n) {
          Vec low = take(x + i, n), high = take(x + a.pairs + i, n);
          turn<T, A, kRound>(low, high, take(cos + i, n), take(sin + i, n));
          put(x + i, low, n);
          put(x + a.pairs + i, high, n);
        });
        continue;
      }
      for (int64_t i = 0; i < a.pairs; ++i) {
        Vec low = splat(widen(x[2 * i])), high = splat(widen(x[2 * i + 1]));
        turn<T, A, kRound>(low, high, splat(widen(cos[i])), splat(widen(sin[i])));
        narrow(low[0], x + 2 * i);
        narrow(high[0], x + 2 * i + 1);
      }
    }
  }
}

// ---- sums ------------------------------------------------------------------------------------------------------------

constexpr int64_t kTileRow = 32;  // elements of a row in a tile
// Tiles of a branch, and columns of the stream beside them, that are asked for ahead: half of them were written by the other core, and a row's work is
// longer than what a core has under way at once. (Sums and norms of 32 tokens, 0.5B shape, ms a step: 0.95 without, 0.82, 0.82 and 0.86
// with 2, 4 and 8; in another run 0.86, and 0.71 and 0.69 with 1 and 3.)
constexpr int64_t kTilesAhead = 3;

// A register of twos: to += from * scale.
inline void add_pairs(float scale, uint16_t* to, const uint16_t* from) {
  const Twos x = load_twos(to);
  Twos y = load_twos(from);
  if (scale != 1.0f) y = {rounded_result(y.even * scale), rounded_result(y.odd * scale)};
  store_twos(to, {x.even + y.even, x.odd + y.odd});
}

template <typename T>
void add_of(const AddArgs& a, int64_t first, int64_t end) {
  T* const x = static_cast<T*>(a.x);
  const T* const branch = static_cast<const T*>(a.branch);
  const auto add = [&](T* to, const T* from, int64_t n) {
    Vec y = take(from, n);
    if (a.scale != 1.0f) y = rounded<T>(y * a.scale);
    put(to, take(to, n) + y, n);
  };
  const auto add_twos = [&](T* to, const T* from) __attribute__((always_inline)) {
    if constexpr (sizeof(T) == 4) return add(to, from, kLanes), add(to + kLanes, from + kLanes, kLanes);
    else return add_pairs(a.scale, to, from);
  };
  if (a.tile == 0) {
    for (; first + 2 * kLanes <= end; first += 2 * kLanes) add_twos(x + first, branch + first);
    return sweep(first, end, [&](int64_t i, int64_t n) { add(x + i, branch + i, n); });
  }
  for (int64_t column = 0; column < a.width; column += kTileRow)  // of whole rows, which lie side by side in a tile
    for (int64_t row = first / a.width; row < end / a.width; ++row) {
      const T* const from = branch + column / kTileRow * a.tile + row * kTileRow;
      T* const to = x + row * a.width + column;
      if (column + kTilesAhead * kTileRow < a.width) ask_first(to + kTilesAhead * kTileRow), ask_first(from + kTilesAhead * a.tile);
      for (int64_t i = 0; i < kTileRow; i += 2 * kLanes) add_twos(to + i, from + i);
    }
}

template <typename T>
void clip_of(T* x, int64_t rows, int64_t width, int64_t row_stride, float bound) {
  const Vec high = splat(bound);
  for (int64_t row = 0; row < rows; ++row, x += row_stride)
    sweep(0, width, [&](int64_t i, int64_t n) {
      const Vec v = take(x + i, n);
      put(x + i, select(v > high, high, select(v < -high, -high, v)), n);
    });
}

// ---- the largest of a row --------------------------------------------------------------------------------------------

// Lane by lane the largest and where it was first; a NaN anywhere shows in `seen`.
void largest_in(const float* x, int64_t count, float* best, int64_t* place) {
  Vec top = splat(-kInf), seen{};
  IntVec at{};
  IntVec index;
  for (int i = 0; i < kLanes; ++i) index[i] = i;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes, index += kLanes) {
    const Vec v = load(x + i);
    const IntVec higher = v > top;
    top = select(higher, v, top);
    at = (higher & index) | (~higher & at);
    seen += v - v;  // 0, or a NaN for one and for an infinity
  }
  *best = -kInf, *place = 0;
  bool odd = false;
  for (int lane = 0; lane < kLanes; ++lane) {
    odd |= seen[lane] != seen[lane];
    if (top[lane] > *best || (top[lane] == *best && at[lane] < *place)) *best = top[lane], *place = at[lane];
  }
  for (int64_t j = i; j < count; ++j) {
    odd |= x[j] != x[j];
    if (x[j] > *best) *best = x[j], *place = j;
  }
  for (int64_t j = 0; odd && j < count; ++j)
    if (x[j] != x[j]) *best = x[j], odd = false;
}

}  // namespace

namespace PAGODA_ISA {

void largest_of(const float* x, int64_t count, float* best, int64_t* place) { largest_in(x, count, best, place); }

void norm_rows(const NormArgs& a, int64_t first, int64_t end) {
  if (a.dtype == Dtype::f32) norm_rows_of<float>(a, first, end);
  else norm_rows_of<uint16_t>(a, first, end);
}

void rotary_rows(const RotaryArgs& a, int64_t first, int64_t end) {
  if (a.dtype == Dtype::f32) rotary_rows_of<float, float>(a, first, end);
  else if (a.angle_dtype == Dtype::f32) rotary_rows_of<uint16_t, float>(a, first, end);
  else rotary_rows_of<uint16_t, uint16_t>(a, first, end);
}

void add_elements(const AddArgs& a, int64_t first, int64_t end) {
  if (a.dtype == Dtype::f32) add_of<float>(a, first, end);
  else add_of<uint16_t>(a, first, end);
}

void clip_rows(void* x, int64_t rows, int64_t width, int64_t row_stride, Dtype dtype, float bound) {
  if (dtype == Dtype::f32) clip_of(static_cast<float*>(x), rows, width, row_stride, bound);
  else clip_of(static_cast<uint16_t*>(x), rows, width, row_stride, bound);
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
