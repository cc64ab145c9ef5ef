#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "bind.hpp"
#include "page_scores.hpp"

namespace nb = nanobind;

namespace pagoda {

void bind_choice(nb::module_& m) {
  m.def("page_scores", [](uintptr_t queries, int64_t kv_heads, int64_t group, int64_t dim, const std::vector<int32_t>& rule,
                          float scale, uintptr_t marks, int64_t room, uintptr_t given, int64_t num_given, uintptr_t turn, int64_t outliers,
                          const std::vector<int64_t>& held, uintptr_t pages, int64_t num_pages, int store, int64_t v_dim, uintptr_t ids,
                          int64_t width, uintptr_t out, const std::string& isa) {
    PageScoreArgs a;
    a.rule = {rule.at(0), rule.at(1), rule.at(2), rule.at(3), rule.at(4), rule.at(5), rule.at(6), rule.at(7)};
    a.heads = group, a.dim = dim, a.scale = scale, a.num_given = num_given, a.turn = at<float>(turn), a.outliers = outliers;
    if (a.rule.kind() == Marks::keys) a.shape = PageShape(Store(store), a.rule.per_page, dim, v_dim);
    a.storage = at<char>(pages);
    for (int64_t head = 0; head < kv_heads; ++head) {
      a.pages = held.at(head), a.room = room;
      a.marks = at<char>(marks) + head * room * a.rule.mark_bytes(), a.given = at<float>(given) + head * a.given_numbers();
      a.ids = at<int32_t>(ids) + head * width, a.out = at<float>(out) + head * width;
      if (a.rule.kind() == Marks::keys) check_pages(a.ids, a.pages, 0, num_pages);
      score_pages(a, at<float>(queries) + head * group * dim, Dtype::f32, dim, isa);
    }
  }, "queries float [kv_heads][group][dim]; marks [kv_heads][room] pages; ids and out [kv_heads][width], of which `held` count.");

  m.def("best_pages", [](uintptr_t scores, int64_t count, int64_t keep, bool first_page, uintptr_t out, const std::string& isa) {
    std::vector<int32_t> room(count + kPageScorePad), pages(keep + 1);
    PAGODA_BODY(isa, best_pages)(at<float>(scores), count, keep, first_page, room.data(), pages.data());
    std::copy_n(pages.begin(), keep, at<int32_t>(out));
  }, "For tests: scores float [count], of which `keep` (1 … count) pages go to out int32 [keep].");
}

}  // namespace pagoda
