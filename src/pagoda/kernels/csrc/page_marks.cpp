#include "page_marks.hpp"

#include <vector>

namespace pagoda {

namespace {

thread_local std::vector<float> numbers;

}  // namespace

void mark_page(PageMarkArgs a, const std::string& isa) {
  numbers.resize(page_mark_room(a));
  a.room_numbers = numbers.data();
  PAGODA_BODY(isa, run_page_marks)(a);
}

}  // namespace pagoda
