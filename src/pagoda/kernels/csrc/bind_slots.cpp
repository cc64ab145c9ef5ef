#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include "bind.hpp"
#include "slots.hpp"

namespace nb = nanobind;

namespace pagoda {

void bind_slots(nb::module_& m) {
  m.def("keep_best", [](uintptr_t scores, uintptr_t lens, uintptr_t budgets, int64_t rows, int64_t slots, int64_t sinks,
                        int64_t recent, float least, uintptr_t keep) {
    KeepBestArgs a;
    a.scores = at<float>(scores), a.lens = at<int64_t>(lens), a.budgets = at<int64_t>(budgets), a.rows = rows, a.slots = slots;
    a.sinks = sinks, a.recent = recent, a.least = least, a.keep = at<uint8_t>(keep);
    keep_best(a);
  });

  m.def("close_gaps", [](uintptr_t pages, int64_t num_pages, int64_t page_bytes, int64_t page_size,
                         const std::vector<std::pair<int64_t, int64_t>>& planes, uintptr_t rows, int64_t width, uintptr_t keep,
                         int64_t count, int64_t slots) {
    std::vector<Plane> list;
    for (const auto& [first, bytes] : planes) list.push_back({first, bytes});
    close_gaps(at<char>(pages), num_pages, page_bytes, page_size, list, at<int32_t>(rows), width, at<uint8_t>(keep), count, slots);
  }, "planes: (first byte, bytes a slot).");

  m.def("close_rows", [](uintptr_t values, int64_t stride, int64_t width, uintptr_t keep, int64_t count, int64_t slots) {
    close_rows(at<float>(values), stride, width, at<uint8_t>(keep), count, slots);
  });

  m.def("add_sums", [](uintptr_t sums, int64_t layers, int64_t seqs, int64_t heads, int64_t slots, uintptr_t targets,
                       uintptr_t widths) {
    add_sums(at<float>(sums), layers, seqs, heads, slots, at<int64_t>(targets), at<int64_t>(widths));
  }, "targets: addresses.");
}

}  // namespace pagoda
