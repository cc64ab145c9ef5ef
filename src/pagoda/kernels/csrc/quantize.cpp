#include "quantize.hpp"

#include <algorithm>
#include <atomic>

#include "parallel.hpp"

namespace pagoda {

constexpr int64_t kPiece = 1 << 16;  // weights that a thread takes at a time

bool quantize_rows(const QuantizeArgs& a, const std::string& isa) {
  const auto body = PAGODA_BODY(isa, quantize_some);
  const int64_t step = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, a.cols));
  std::atomic<bool> finite{true};
  parallel_for((a.num_rows + step - 1) / step, a.num_threads, [&](int64_t item) {
    if (!body(a, item * step, std::min(a.num_rows, (item + 1) * step))) finite = false;
  });
  return finite;
}

}  // namespace pagoda
