#include "quantize.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "parallel.hpp"

namespace pagoda {
namespace {

constexpr int64_t kMaxGroup = 128;
constexpr int64_t kPiece = 1 << 16;  // weights that a thread takes at a time

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Half to even, like torch; what is divided by its own scale is far below 2^22. std::nearbyint would be a call.
float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

float to_bf16(float x) {
  const uint32_t bits = bits_of(x);
  return from_bits((bits + 0x7fffu + (bits >> 16 & 1)) & 0xffff0000u);
}

float half_value(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return from_bits(sign | 0x7f800000u | (rest & 0x3ff) << 13);
  // Read as a float with 2^112 times too small an exponent, so that halves below the normal ones come out right too.
  return from_bits(sign | bits_of(from_bits(rest << 13) * from_bits(239u << 23)));
}

template <Dtype dtype>
float value_at(const uint8_t* row, int64_t i) {
  if constexpr (dtype == Dtype::f32) {
    float x;
    std::memcpy(&x, row + 4 * i, 4);
    return x;
  } else {
    uint16_t half;
    std::memcpy(&half, row + 2 * i, 2);
    return dtype == Dtype::bf16 ? from_bits(uint32_t(half) << 16) : half_value(half);
  }
}

// count values from first; false where one is not finite.
template <Dtype dtype>
bool read(const uint8_t* row, int64_t first, int64_t count, float* out) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    out[i] = value_at<dtype>(row, first + i);
    bad |= (bits_of(out[i]) & 0x7f800000u) == 0x7f800000u;
  }
  return bad == 0;
}

float largest_size(const float* w, int64_t count) {
  float most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, from_bits(bits_of(w[i]) & 0x7fffffffu));
  return most;
}

float divisor(float scale) { return scale == 0 ? 1.0f : scale; }

struct Grid {
  float scale, zero;
};

// The largest value, whatever its sign, becomes exactly -8 steps.
Grid symmetric_grid(const float* w, int64_t count, bool wide) {
  const float most = largest_size(w, count);
  float found = w[0];
  for (int64_t i = 0; i < count; ++i)
    if (from_bits(bits_of(w[i]) & 0x7fffffffu) == most) {
      found = w[i];
      break;
    }
  const float scale = found / -8.0f;
  return {wide ? scale : to_bf16(scale), 8.0f};
}

Grid asymmetric_grid(const float* w, int64_t count, bool wide) {
  float low = 0, high = 0;
  for (int64_t i = 0; i < count; ++i) low = std::min(low, w[i]), high = std::max(high, w[i]);
  float scale = (high - low) / 15.0f;
  if (!wide) scale = to_bf16(scale);
  return {scale, std::min(15.0f, std::max(0.0f, nearest(-low / divisor(scale))))};
}

// The first of two codes in the lower half of a byte; values beyond count are 0.
void four_bits(const float* w, int64_t count, Grid grid, uint8_t* out) {
  uint8_t codes[kMaxGroup];
  const float by = divisor(grid.scale);
  for (int64_t i = 0; i < count; ++i)
    codes[i] = uint8_t(int32_t(std::min(15.0f, std::max(0.0f, nearest(w[i] / by) + grid.zero))));
  if (count % 2) codes[count] = 0;
  for (int64_t i = 0; i < (count + 1) / 2; ++i) out[i] = uint8_t(codes[2 * i] | codes[2 * i + 1] << 4);
}

template <Dtype dtype>
bool row_in_groups(const QuantizeArgs& a, int64_t row) {
  const int64_t groups = (a.cols + a.group - 1) / a.group;
  const uint8_t* from = a.rows + row * a.cols * size_of(dtype);
  uint8_t* codes = a.codes + row * ((a.cols + 1) / 2);
  float w[kMaxGroup];
  bool finite = true;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * a.group, count = std::min(a.group, a.cols - first), at = row * groups + g;
    finite &= read<dtype>(from, first, count, w);
    const Grid grid = a.zeros ? asymmetric_grid(w, count, a.wide_scales) : symmetric_grid(w, count, a.wide_scales);
    if (a.wide_scales) {
      std::memcpy(a.scales + 4 * at, &grid.scale, 4);
    } else {
      const uint16_t upper = uint16_t(bits_of(grid.scale) >> 16);
      std::memcpy(a.scales + 2 * at, &upper, 2);
    }
    if (a.zeros) a.zeros[at] = uint8_t(grid.zero);
    four_bits(w, count, grid, codes + first / 2);
  }
  return finite;
}

template <Dtype dtype>
bool whole_row(const QuantizeArgs& a, int64_t row, float* w) {
  const bool finite = read<dtype>(a.rows + row * a.cols * size_of(dtype), 0, a.cols, w);
  const float scale = largest_size(w, a.cols) / 127.0f, by = divisor(scale);
  std::memcpy(a.scales + 4 * row, &scale, 4);
  int8_t* codes = reinterpret_cast<int8_t*>(a.codes) + row * a.cols;
  for (int64_t i = 0; i < a.cols; ++i) codes[i] = int8_t(int32_t(nearest(w[i] / by)));
  return finite;
}

template <Dtype dtype>
bool all_rows(const QuantizeArgs& a) {
  const int64_t step = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, a.cols));
  std::atomic<bool> finite{true};
  parallel_for((a.num_rows + step - 1) / step, a.num_threads, [&](int64_t item) {
    std::vector<float> w(a.group ? 0 : a.cols);
    bool fine = true;
    for (int64_t row = item * step; row < std::min(a.num_rows, (item + 1) * step); ++row)
      fine &= a.group ? row_in_groups<dtype>(a, row) : whole_row<dtype>(a, row, w.data());
    if (!fine) finite = false;
  });
  return finite;
}

}  // namespace

bool quantize_rows(const QuantizeArgs& a) {
  switch (a.dtype) {
    case Dtype::f32: return all_rows<Dtype::f32>(a);
    case Dtype::bf16: return all_rows<Dtype::bf16>(a);
    default: return all_rows<Dtype::f16>(a);
  }
}

}  // namespace pagoda
