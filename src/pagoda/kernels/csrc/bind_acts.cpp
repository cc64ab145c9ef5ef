#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "acts.hpp"
#include "bind.hpp"

namespace nb = nanobind;

namespace pagoda {

using Place = std::pair<uintptr_t, int64_t>;  // address, columns of a row

static Remembered remembered(const Place& place) { return {at<float>(place.first), place.second}; }

static std::vector<Remembered> remembered(const std::vector<Place>& places) {
  std::vector<Remembered> list;
  for (const Place& place : places) list.push_back(remembered(place));
  return list;
}

void bind_acts(nb::module_& m) {
  nb::class_<Act>(m, "Act", "One act of an eviction (csrc/acts.hpp): made of a table, told what to do, judged, run, and asked what came of it.")
      .def("__init__", [](Act* act, uintptr_t bases, int64_t rows, int64_t width, int64_t run, uintptr_t counts, uintptr_t lens) {
        new (act) Act;
        act->bases = at<int32_t>(bases), act->rows = rows, act->width = width, act->run = run;
        act->counts = at<int32_t>(counts), act->lens = at<int32_t>(lens);
      })
      .def("slide", [](Act& act, int64_t sinks, int64_t from) { act.slides = true, act.sinks = sinks, act.from = from; })
      .def("rank", [](Act& act, int by, const Place& first, const Place& second, uintptr_t budgets, int64_t budget, int64_t sinks,
                      int64_t recent, float least, int64_t pool, int64_t unvoted, int64_t stem, int64_t stem_budget,
                      const std::vector<Place>& moved, const std::vector<Place>& cleared) {
        act.by = By(by), act.first = remembered(first), act.second = remembered(second);
        act.budgets = at<int64_t>(budgets), act.budget = budget, act.sinks = sinks, act.recent = recent;
        act.least = least, act.pool = pool, act.unvoted = unvoted, act.stem = stem, act.stem_budget = stem_budget;
        act.moved = remembered(moved), act.cleared = remembered(cleared);
      })
      .def("look", [](Act& act, uintptr_t ring, int dtype, int64_t places, int64_t heads, int64_t group, int64_t num_seen, float scale,
                      float soft_cap, const Place& positions, int64_t unnumbered) {
        act.ring = at<char>(ring), act.dtype = Dtype(dtype), act.places = places, act.heads = heads, act.group = group;
        act.num_seen = num_seen, act.scale = scale, act.soft_cap = soft_cap;
        act.positions = remembered(positions), act.unnumbered = unnumbered;
      })
      .def("vote", [](Act& act, uintptr_t voters, int64_t count) { act.voters = at<int64_t>(voters), act.num_voters = count; })
      .def("hash", [](Act& act, uintptr_t planes, int64_t bits, uintptr_t queries, int64_t group, int64_t unhashed) {
        act.planes = at<float>(planes), act.bits = bits, act.queries = at<float>(queries);
        act.group = group, act.unhashed = unhashed;
      })
      .def("blend", [](Act& act, uintptr_t rows, int64_t count, int64_t carrier, int64_t carried, double weight, double other_weight) {
        act.blended = at<int64_t>(rows), act.num_blended = count, act.carrier = carrier, act.carried = carried;
        act.weight = float(weight), act.other_weight = float(other_weight);
      })
      .def_ro("dropped", &Act::dropped)
      .def_ro("room", &Act::room)
      .def_ro("num_cut", &Act::num_cut)
      .def_ro("tail_owned", &Act::tail_owned)
      .def_ro("freed", &Act::freed)
      .def_ro("freed_pages", &Act::freed_pages)
      .def_ro("error", &Act::error);

  m.def("copies_of", [](uintptr_t refs, const std::vector<Act*>& acts) { return copies_of(acts, at<int32_t>(refs)); });
  m.def("choose_acts", [](uintptr_t pages, int64_t num_pages, int store, int64_t page_size, int64_t k_dim, int64_t v_dim, uintptr_t refs,
                          const std::vector<Act*>& acts, int num_threads) {
    choose_acts(at<char>(pages), num_pages, PageShape(Store(store), page_size, k_dim, v_dim), at<int32_t>(refs), acts, num_threads);
  });
  m.def("run_acts", [](uintptr_t pages, int64_t num_pages, int store, int64_t page_size, int64_t k_dim, int64_t v_dim, uintptr_t refs,
                       const std::vector<Act*>& acts, const std::vector<int32_t>& fresh, int num_threads) {
    const PageShape shape(Store(store), page_size, k_dim, v_dim);
    return run_acts(at<char>(pages), num_pages, shape, at<int32_t>(refs), acts, fresh, num_threads);
  });
}

}  // namespace pagoda
