// Answers of experts for one instruction set; see experts.hpp.

#include "experts.hpp"
#include "row_parts.hpp"

namespace pagoda {
namespace {

template <typename T>
void weigh(const WeighArgs& a, int64_t rows, int64_t first, int64_t end) {
  for (int64_t row = 0; row < rows; ++row) {
    const T* const from = static_cast<const T*>(a.results) + row * a.width;
    T* const to = static_cast<T*>(a.out) + a.tokens[row] * a.width;
    const Vec weight = splat(a.weights[row]);
    sweep(first, end, [&](int64_t i, int64_t n) { put(to + i, take(to + i, n) + rounded<T>(take(from + i, n) * weight), n); });
  }
}

}  // namespace

namespace PAGODA_ISA {

void weigh_columns(const WeighArgs& a, int64_t rows, int64_t first, int64_t end) {
  if (a.dtype == Dtype::f32) weigh<float>(a, rows, first, end);
  else weigh<uint16_t>(a, rows, first, end);
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
