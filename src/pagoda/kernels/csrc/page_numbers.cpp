#include "page_numbers.hpp"

#include <stdexcept>

#include "parallel.hpp"

namespace pagoda {

namespace {

// The pages of one place, by head.
struct Place {
  const PageNumbersArgs& a;
  int64_t number;

  static const uint8_t* find(const void* place, int64_t head) {
    const Place& p = *static_cast<const Place*>(place);
    return p.a.pages + p.a.ids[head * p.a.count + p.number] * p.a.page_bytes;
  }
};

}  // namespace

void page_numbers(const PageNumbersArgs& a, int num_threads, const std::string& isa) {
  const auto body = PAGODA_BODY(isa, run_page_numbers);
  for (int64_t i = 0; i < a.heads * a.count; ++i)  // before threads follow them
    if (a.ids[i] < 0 || a.ids[i] >= a.num_pages) throw std::out_of_range("a page that is not there");
  parallel_for(a.heads * a.count, num_threads, [&](int64_t item) {
    const int64_t head = item / a.count, bytes = a.half ? 2 : 4;
    const Place place{a, item % a.count};
    for (const auto& to : a.targets) {
      const int64_t at = head * to.out_head_stride + a.places[place.number] * to.out_page_stride;
      body({&to.side, Place::find(&place, head), head, a.page_size, static_cast<char*>(to.out) + at * bytes, to.side.dim, a.half,
            &place, &Place::find});
    }
  });
}

}  // namespace pagoda
