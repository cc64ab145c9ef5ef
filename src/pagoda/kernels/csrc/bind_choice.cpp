#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "bind.hpp"
#include "page_marks.hpp"
#include "page_scores.hpp"

namespace nb = nanobind;

namespace pagoda {

namespace {

PageRule rule_of(const std::vector<int32_t>& numbers) {
  const auto n = [&](size_t i) { return numbers.at(i); };
  return {n(0), n(1), n(2), n(3), n(4), n(5), n(6), n(7)};
}

}  // namespace

void bind_choice(nb::module_& m) {
  m.def("page_scores", [](uintptr_t queries, int64_t kv_heads, int64_t group, int64_t dim, const std::vector<int32_t>& rule,
                          float scale, uintptr_t marks, int64_t room, uintptr_t given, int64_t num_given, uintptr_t turn, int64_t outliers,
                          const std::vector<int64_t>& held, uintptr_t pages, int64_t num_pages, int store, int64_t v_dim, uintptr_t ids,
                          int64_t width, uintptr_t out, const std::string& isa) {
    PageScoreArgs a;
    a.rule = rule_of(rule);
    a.heads = group, a.dim = dim, a.scale = scale, a.num_given = num_given, a.turn = at<float>(turn), a.outliers = outliers;
    if (a.rule.kind() == Marks::keys) a.shape = PageShape(Store(store), a.rule.per_page, dim, v_dim);
    a.storage = at<char>(pages);
    PageScorer scorer;
    for (int64_t head = 0; head < kv_heads; ++head) {
      a.pages = held.at(head), a.room = room;
      a.marks = at<char>(marks) + head * room * a.rule.mark_bytes(), a.given = at<char>(given) + head * given_bytes(a.rule, dim, num_given);
      a.ids = at<int32_t>(ids) + head * width;
      if (a.rule.kind() == Marks::keys) check_pages(a.ids, a.pages, 0, num_pages);
      scorer.prepare(a, at<float>(queries) + head * group * dim, Dtype::f32, dim, isa);
      scorer.run(at<float>(out) + head * width, {}, isa);
    }
  }, "queries float [kv_heads][group][dim]; marks [kv_heads][room] pages; ids and out [kv_heads][width], of which `held` count.");

  m.def("page_marks", [](uintptr_t keys, int64_t heads, int64_t pages, int64_t page_size, int64_t dim, const std::vector<int32_t>& rule,
                         int64_t first, uintptr_t marks, int64_t room, uintptr_t given, int64_t num_given, uintptr_t weights, uintptr_t metric,
                         uintptr_t freq, const std::string& isa) {
    PageMarkArgs a;
    a.rule = rule_of(rule), a.shape = PageShape(Store::f32, page_size, dim, 0), a.room = room, a.num_given = num_given;
    a.freq = at<float>(freq);
    for (int64_t head = 0; head < heads; ++head) {
      a.marks = at<char>(marks) + head * room * a.rule.mark_bytes();
      a.given = given ? at<char>(given) + head * given_bytes(a.rule, dim, num_given) : nullptr;
      a.weights = weights ? at<float>(weights) + head * 2 * num_given : nullptr;
      a.metric = metric ? at<float>(metric) + head * dim * dim : nullptr;
      for (int64_t page = 0; page < pages; ++page) {
        a.page = at<char>(keys) + (head * pages + page) * a.shape.page_bytes, a.number = first + page;
        mark_page(a, isa);
      }
    }
  }, "keys float [heads][pages][page_size][dim] of the pages `first` and on, whose marks go to marks [heads][room] pages.");

  m.def("best_pages", [](uintptr_t scores, int64_t count, int64_t keep, bool first_page, uintptr_t out, const std::string& isa) {
    std::vector<int32_t> room(count + kPageScorePad), pages(keep + 1);
    PAGODA_BODY(isa, best_pages)(at<float>(scores), count, keep, first_page, room.data(), pages.data());
    std::copy_n(pages.begin(), keep, at<int32_t>(out));
  }, "For tests: scores float [count], of which `keep` (1 … count) pages go to out int32 [keep].");
}

}  // namespace pagoda
