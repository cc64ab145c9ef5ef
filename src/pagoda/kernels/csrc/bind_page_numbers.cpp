#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind.hpp"
#include "bind_sides.hpp"
#include "page_codes.hpp"

namespace nb = nanobind;

namespace pagoda {

namespace {

// A side, then: out, stride of a head, of a page
using Target = std::tuple<BoundSide, uintptr_t, int64_t, int64_t>;

// A side, then: numbers, bytes from a head to the next
using Source = std::tuple<BoundSide, uintptr_t, int64_t>;

PageNumbersArgs::Target target_of(const Target& from) {
  return {side_of(std::get<0>(from)), at<void>(std::get<1>(from)), std::get<2>(from), std::get<3>(from)};
}

}  // namespace

void bind_page_numbers(nb::module_& m) {
  m.def("page_numbers", [](uintptr_t pages, int64_t num_pages, int64_t page_bytes, int64_t page_size, uintptr_t ids,
                           uintptr_t places, int64_t heads, int64_t count, bool half, const Target& keys, const Target& values,
                           int num_threads, const std::string& isa) {
    PageNumbersArgs a;
    a.pages = at<uint8_t>(pages), a.num_pages = num_pages, a.page_bytes = page_bytes, a.page_size = page_size;
    a.ids = at<int64_t>(ids), a.places = at<int64_t>(places), a.heads = heads, a.count = count, a.half = half;
    a.targets[0] = target_of(keys), a.targets[1] = target_of(values);
    nb::gil_scoped_release release;
    page_numbers(a, num_threads, isa);
  }, "ids [heads][count], places [count], both int64; each half: (side, out, its strides), a side: (kind, offsets, table, its head stride, dim).");

  m.def("page_codes", [](uintptr_t pages, int64_t num_pages, int64_t page_bytes, int64_t page_size, uintptr_t ids, int64_t heads,
                         int64_t count, bool half, const std::vector<Source>& sources, int num_threads, const std::string& isa) {
    PageCodesArgs a;
    a.pages = at<uint8_t>(pages), a.num_pages = num_pages, a.page_bytes = page_bytes, a.page_size = page_size;
    a.ids = at<int64_t>(ids), a.heads = heads, a.count = count, a.half = half;
    for (int i = 0; i < 2; ++i)
      a.sources[i] = {side_of(std::get<0>(sources.at(i))), at<char>(std::get<1>(sources[i])), std::get<2>(sources[i])};
    nb::gil_scoped_release release;
    page_codes(a, num_threads, isa);
  }, "The way back, of kinds that page_codes.hpp names: ids [heads][count] int64; each half: (side, numbers, bytes from a head to the next).");

  nb::class_<CodedSides>(m, "CodedSides", "Keys and values of each layer, in turns; the tables must outlive it.")
      .def("__init__", [](CodedSides* self, const std::vector<BoundSide>& sides, int64_t page_bytes) {
        new (self) CodedSides;
        for (const BoundSide& side : sides) self->of.push_back(side_of(side));
        self->page_bytes = page_bytes;
      });
}

}  // namespace pagoda
