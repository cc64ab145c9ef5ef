#include "page_codes.hpp"

#include <stdexcept>

#include "parallel.hpp"

namespace pagoda {

void page_codes(const PageCodesArgs& a, int num_threads, const std::string& isa) {
  const auto body = PAGODA_BODY(isa, run_page_codes);
  for (int64_t i = 0; i < a.heads * a.count; ++i)  // before threads follow them
    if (a.ids[i] < 0 || a.ids[i] >= a.num_pages) throw std::out_of_range("a page that is not there");
  parallel_for(a.heads, num_threads, [&](int64_t head) {
    for (int64_t n = 0; n < a.count; ++n)
      for (const auto& from : a.sources) {
        const int64_t page_bytes = a.page_size * from.side.dim * (a.half ? 2 : 4);
        body({&from.side, from.numbers + head * from.head_bytes + n * page_bytes, a.half, a.page_size,
              a.pages + a.ids[head * a.count + n] * a.page_bytes, head});
      }
  });
}

}  // namespace pagoda
