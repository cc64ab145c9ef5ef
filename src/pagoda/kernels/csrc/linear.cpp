#include "linear.hpp"

#include <algorithm>
#include <stdexcept>

#include "parallel.hpp"

namespace pagoda {

namespace {
constexpr int64_t kParallelBytes = 256 << 10;  // weights under which waking a thread costs more than it brings
constexpr int64_t kItemBytes = 128 << 10;      // weights of one item: small beside a core's cache, large beside a fetch
}  // namespace

void linear(const LinearArgs& a, int num_threads, const std::string& isa) {
  if (a.tokens > kMaxLinearTokens) throw std::invalid_argument("more tokens than this product is made for");
  const LinearBody body = PAGODA_BODY(isa, linear_rows);
  if (a.inputs * a.outputs * 2 < kParallelBytes) num_threads = 1;
  const int64_t rows = std::max<int64_t>(16, kItemBytes / (2 * std::max<int64_t>(1, a.inputs)) / 16 * 16);
  const int64_t items = (a.outputs + rows - 1) / rows;
  parallel_for(items, num_threads, [&](int64_t i) { body(a, i * rows, std::min(a.outputs, (i + 1) * rows)); });
}

}  // namespace pagoda
