#include <nanobind/stl/string.h>

#include "bind.hpp"
#include "choice.hpp"

namespace nb = nanobind;

namespace pagoda {

void bind_choice(nb::module_& m) {
  m.def("box_scores", [](uintptr_t queries, uintptr_t boxes, uintptr_t out, int64_t kv_heads, int64_t group, int64_t width,
                         int64_t pages, int64_t boxes_per_page, int64_t boxes_stride, const std::string& isa) {
    const auto body = PAGODA_BODY(isa, run_box_scores);
    for (int64_t head = 0; head < kv_heads; ++head) {
      BoxScoreArgs a;
      a.queries = at<float>(queries) + head * group * width, a.boxes = at<float>(boxes) + head * boxes_stride;
      a.heads = group, a.width = width, a.pages = pages, a.boxes_per_page = boxes_per_page;
      a.out = at<float>(out) + head * pages;
      body(a);
    }
  }, "queries [H][G][width], boxes [H][pages][boxes_per_page][width] (stride of a head in elements), out [H][pages].");
}

}  // namespace pagoda
