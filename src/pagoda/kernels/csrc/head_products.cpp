#include "head_products.hpp"

#include <algorithm>

#include "parallel.hpp"

namespace pagoda {

namespace {
constexpr int64_t kTokens = 16;                // of one item: a head's matrix stays in the second cache meanwhile
constexpr int64_t kParallelBytes = 256 << 10;  // of matrices, under which waking a thread costs more than it brings
}  // namespace

void head_products(const HeadProductArgs& a, int num_threads, const std::string& isa) {
  const auto body = PAGODA_BODY(isa, head_product);
  const int64_t parts = (a.tokens + kTokens - 1) / kTokens, bytes = a.heads * a.rows * a.columns * size_of(a.dtype);
  if (bytes * std::max<int64_t>(1, a.tokens / 4) < kParallelBytes) num_threads = 1;
  parallel_for(a.heads * parts, num_threads, [&](int64_t i) {
    const int64_t token = i % parts * kTokens;
    body(a, i / parts, token, std::min(a.tokens, token + kTokens));
  });
}

}  // namespace pagoda
