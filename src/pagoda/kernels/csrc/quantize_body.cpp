// Rows to codes, for one instruction set; see quantize.hpp.
#include "quantize.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "small_floats.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

constexpr int64_t kMaxGroup = 128;

// Half to even, like torch; what is divided by its own scale is far below 2^22. std::nearbyint would be a call.
template <typename Number>
Number nearest(Number x) {
  return (x + 12582912.0f) - 12582912.0f;
}

using Bytes __attribute__((vector_size(kLanes))) = uint8_t;

Vec within(Vec x, float low, float high) {
  x = maximum(x, splat(low));
  return select(x > splat(high), splat(high), x);
}

void store_bytes(Vec whole, uint8_t* out) {
  const Bytes bytes = __builtin_convertvector(__builtin_convertvector(whole, IntVec), Bytes);
  std::memcpy(out, &bytes, sizeof bytes);
}

int32_t largest(IntVec x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32((__m512i)x);
#else
  int32_t most = x[0];
  for (int i = 1; i < kLanes; ++i) most = std::max(most, int32_t(x[i]));
  return most;
#endif
}

float to_bf16(float x) { return bf16_value(bf16_bits(x)); }

template <Dtype dtype>
float value_at(const uint8_t* row, int64_t i) {
  if constexpr (dtype == Dtype::f32) {
    float x;
    std::memcpy(&x, row + 4 * i, 4);
    return x;
  } else {
    uint16_t half;
    std::memcpy(&half, row + 2 * i, 2);
    return dtype == Dtype::bf16 ? bf16_value(half) : half_value(half);
  }
}

constexpr int32_t kSize = 0x7fffffff, kExponent = 0x7f800000;

// count values from first; false where one is not finite.
template <Dtype dtype>
bool read(const uint8_t* row, int64_t first, int64_t count, float* out) {
  IntVec bad{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Vec x;
    if constexpr (dtype == Dtype::f16) {
      for (int lane = 0; lane < kLanes; ++lane) out[i + lane] = value_at<dtype>(row, first + i + lane);
      x = load(out + i);
    } else {
      x = load(reinterpret_cast<const std::conditional_t<dtype == Dtype::f32, float, uint16_t>*>(row) + first + i);
      store(out + i, x);
    }
    bad |= ((IntVec)x & kExponent) == kExponent;
  }
  bool fine = true;
  for (; i < count; ++i) {
    out[i] = value_at<dtype>(row, first + i);
    fine &= (int32_t(bits_of(out[i])) & kExponent) != kExponent;
  }
  return fine && largest(-bad) == 0;
}

// Sizes are in the order of their bits.
float largest_size(const float* w, int64_t count) {
  IntVec most{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const IntVec size = (IntVec)load(w + i) & kSize;
    most = size > most ? size : most;
  }
  int32_t found = largest(most);
  for (; i < count; ++i) found = std::max(found, int32_t(bits_of(w[i])) & kSize);
  return from_bits(uint32_t(found));
}

float divisor(float scale) { return scale == 0 ? 1.0f : scale; }

struct Grid {
  float scale, zero;
};

// The largest value, whatever its sign, becomes exactly -middle steps.
Grid symmetric_grid(const float* w, int64_t count, bool wide, float middle) {
  const float most = largest_size(w, count);
  float found = w[0];
  for (int64_t i = 0; i < count; ++i)
    if (from_bits(bits_of(w[i]) & 0x7fffffffu) == most) {
      found = w[i];
      break;
    }
  const float scale = found / -middle;
  return {wide ? scale : to_bf16(scale), middle};
}

Grid asymmetric_grid(const float* w, int64_t count, bool wide, float top) {
  IntVec below{}, above{};  // of numbers of either sign sizes are in the order of their bits
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const IntVec x = (IntVec)load(w + i), turned = x & kSize & (x < 0), kept = x & ~(x < 0);
    below = turned > below ? turned : below, above = kept > above ? kept : above;
  }
  float low = -from_bits(uint32_t(largest(below))), high = from_bits(uint32_t(largest(above)));
  for (; i < count; ++i) low = std::min(low, w[i]), high = std::max(high, w[i]);
  float scale = (high - low) / top;
  if (!wide) scale = to_bf16(scale);
  return {scale, std::min(top, std::max(0.0f, nearest(-low / divisor(scale))))};
}

// Codes of a group, with zeros behind them for a word that they do not fill.
template <int kBits>
void codes_of(const float* w, int64_t count, Grid grid, uint8_t (&codes)[kMaxGroup + 6]) {
  constexpr float kTop = (1 << kBits) - 1;
  const float by = divisor(grid.scale);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_bytes(within(nearest(load(w + i) / by) + grid.zero, 0.0f, kTop), codes + i);
  for (; i < count; ++i) codes[i] = uint8_t(int32_t(std::min(kTop, std::max(0.0f, nearest(w[i] / by) + grid.zero))));
  std::memset(codes + count, 0, 6);
}

// 4 bits: the first of two codes in the lower half of a byte. 5 bits: even ones of six in the lower half of 32 bits.
template <int kBits>
void put_codes(const uint8_t* codes, int64_t count, uint8_t* out) {
  if constexpr (kBits == 4) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
      uint64_t x;  // eight codes of four bits, a byte each
      std::memcpy(&x, codes + i, 8);
      x = (x | x >> 4) & 0x00ff00ff00ff00ffu, x = (x | x >> 8) & 0x0000ffff0000ffffu, x |= x >> 16;
      std::memcpy(out + i / 2, &x, 4);
    }
    for (; i < count; i += 2) out[i / 2] = uint8_t(codes[i] | codes[i + 1] << 4);
  } else {
    for (int64_t i = 0; i < count; i += 6, out += 4) {
      uint32_t word = 0;
      for (int n = 0; n < 6; ++n) word |= uint32_t(codes[i + n]) << (n / 2 * kBits + n % 2 * 16);
      std::memcpy(out, &word, 4);
    }
  }
}

template <Dtype dtype, int kBits>
bool row_in_groups(const QuantizeArgs& a, int64_t row) {
  const int64_t groups = (a.cols + a.group - 1) / a.group;
  const uint8_t* from = a.rows + row * a.cols * size_of(dtype);
  constexpr int64_t kCodes = kBits == 4 ? 2 : 6, kBytes = kBits == 4 ? 1 : 4;  // side by side
  uint8_t* out = a.codes + row * ((a.cols + kCodes - 1) / kCodes * kBytes);
  float w[kMaxGroup];
  uint8_t codes[kMaxGroup + 6];
  bool finite = true;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * a.group, count = std::min(a.group, a.cols - first), at = row * groups + g;
    finite &= read<dtype>(from, first, count, w);
    const Grid grid = a.zeros ? asymmetric_grid(w, count, a.wide_scales, (1 << kBits) - 1)
                              : symmetric_grid(w, count, a.wide_scales, 1 << (kBits - 1));
    if (a.wide_scales) {
      std::memcpy(a.scales + 4 * at, &grid.scale, 4);
    } else {
      const uint16_t upper = uint16_t(bits_of(grid.scale) >> 16);
      std::memcpy(a.scales + 2 * at, &upper, 2);
    }
    if (a.zeros) a.zeros[at] = uint8_t(grid.zero);
    codes_of<kBits>(w, count, grid, codes);
    put_codes<kBits>(codes, count, out + first / kCodes * kBytes);
  }
  return finite;
}

// The number of the level that is nearest, the lower one of two at the same distance.
uint8_t nearest_level(float x) {
  uint8_t found = 0;
  for (int i = 0; i < 15; ++i) found += x > (kNormalLevels[i + 1] + kNormalLevels[i]) / 2;
  return found;
}

template <Dtype dtype>
bool row_in_levels(const QuantizeArgs& a, int64_t row) {
  const int64_t groups = (a.cols + a.group - 1) / a.group;
  const uint8_t* from = a.rows + row * a.cols * size_of(dtype);
  uint8_t* out = a.codes + row * ((a.cols + 1) / 2);
  float w[kMaxGroup];
  uint8_t codes[kMaxGroup + 6];
  bool finite = true;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * a.group, count = std::min(a.group, a.cols - first);
    finite &= read<dtype>(from, first, count, w);
    const float scale = largest_size(w, count), by = divisor(scale);
    std::memcpy(a.scales + 4 * (row * groups + g), &scale, 4);
    for (int64_t i = 0; i < count; ++i) codes[i] = nearest_level(w[i] / by);
    codes[count] = 0;
    put_codes<4>(codes, count, out + first / 2);
  }
  return finite;
}

template <Dtype dtype>
bool whole_row(const QuantizeArgs& a, int64_t row, float* w) {
  const bool finite = read<dtype>(a.rows + row * a.cols * size_of(dtype), 0, a.cols, w);
  const float top = a.floats ? 448.0f : 127.0f, scale = largest_size(w, a.cols) / top, by = divisor(scale);
  std::memcpy(a.scales + 4 * row, &scale, 4);
  uint8_t* codes = a.codes + row * a.cols;
  if (a.floats)
    for (int64_t i = 0; i < a.cols; ++i) codes[i] = e4m3_bits(std::min(top, std::max(-top, w[i] / by)));
  else {
    int64_t i = 0;
    for (; i + kLanes <= a.cols; i += kLanes) store_bytes(nearest(load(w + i) / by), codes + i);
    for (; i < a.cols; ++i) codes[i] = uint8_t(int32_t(nearest(w[i] / by)));
  }
  return finite;
}

template <Dtype dtype>
bool some_rows(const QuantizeArgs& a, int64_t first, int64_t last) {
  std::vector<float> w(a.group ? 0 : a.cols);
  bool fine = true;
  for (int64_t row = first; row < last; ++row)
    fine &= a.bits == 8   ? whole_row<dtype>(a, row, w.data())
            : a.floats    ? row_in_levels<dtype>(a, row)
            : a.bits == 5 ? row_in_groups<dtype, 5>(a, row)
                          : row_in_groups<dtype, 4>(a, row);
  return fine;
}

}  // namespace

namespace PAGODA_ISA {

bool quantize_some(const QuantizeArgs& a, int64_t first, int64_t last) {
  switch (a.dtype) {
    case Dtype::f32: return some_rows<Dtype::f32>(a, first, last);
    case Dtype::bf16: return some_rows<Dtype::bf16>(a, first, last);
    default: return some_rows<Dtype::f16>(a, first, last);
  }
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
