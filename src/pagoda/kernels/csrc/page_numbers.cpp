#include "page_numbers.hpp"

#include <stdexcept>
#include <vector>

#include "parallel.hpp"

namespace pagoda {

namespace {
thread_local std::vector<float> numbers;
}

void page_numbers(const PageNumbersArgs& a, int num_threads, const std::string& isa) {
  const auto body = PAGODA_BODY(isa, run_page_numbers);
  for (int64_t i = 0; i < a.heads * a.count; ++i)  // before threads follow them
    if (a.ids[i] < 0 || a.ids[i] >= a.num_pages) throw std::out_of_range("a page that is not there");
  parallel_for(a.heads * a.count, num_threads, [&](int64_t item) {
    const int64_t head = item / a.count, page = item % a.count;
    for (const PageSide& side : a.sides) {
      PageRow row;
      row.page = a.pages + a.ids[item] * a.page_bytes, row.side = &side, row.page_size = a.page_size;
      row.all = &a, row.head = head, row.number = page;
      row.table = side.table ? side.table + head * side.table_stride : nullptr;
      const int64_t at = head * side.out_head_stride + a.places[page] * side.out_page_stride;
      row.out = static_cast<float*>(side.out) + at, row.half = nullptr;
      if (a.half) {
        numbers.resize(a.page_size * side.dim);
        row.out = numbers.data(), row.half = static_cast<uint16_t*>(side.out) + at;
      }
      body(row);
    }
  });
}

}  // namespace pagoda
