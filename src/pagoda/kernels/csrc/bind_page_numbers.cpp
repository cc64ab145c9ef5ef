#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind.hpp"
#include "page_numbers.hpp"

namespace nb = nanobind;

namespace pagoda {

namespace {

// (kind, offsets, table, stride of a head in the table, dim, out, stride of a head, of a page)
using Side = std::tuple<int, std::vector<int64_t>, uintptr_t, int64_t, int64_t, uintptr_t, int64_t, int64_t>;

PageSide side_of(const Side& from) {
  PageSide side;
  side.kind = CodeKind(std::get<0>(from));
  const auto& offsets = std::get<1>(from);
  for (size_t i = 0; i < offsets.size() && i < 5; ++i) side.at[i] = offsets[i];
  side.table = at<float>(std::get<2>(from)), side.table_stride = std::get<3>(from), side.dim = std::get<4>(from);
  side.out = at<void>(std::get<5>(from)), side.out_head_stride = std::get<6>(from), side.out_page_stride = std::get<7>(from);
  return side;
}

}  // namespace

void bind_page_numbers(nb::module_& m) {
  m.def("page_numbers", [](uintptr_t pages, int64_t num_pages, int64_t page_bytes, int64_t page_size, uintptr_t ids,
                           uintptr_t places, int64_t heads, int64_t count, bool half, const Side& keys, const Side& values,
                           int num_threads, const std::string& isa) {
    PageNumbersArgs a;
    a.pages = at<uint8_t>(pages), a.num_pages = num_pages, a.page_bytes = page_bytes, a.page_size = page_size;
    a.ids = at<int64_t>(ids), a.places = at<int64_t>(places), a.heads = heads, a.count = count, a.half = half;
    a.sides[0] = side_of(keys), a.sides[1] = side_of(values);
    nb::gil_scoped_release release;
    page_numbers(a, num_threads, isa);
  }, "ids [heads][count], places [count], both int64; a side: (kind, offsets, table, its head stride, dim, out, its strides).");
}

}  // namespace pagoda
