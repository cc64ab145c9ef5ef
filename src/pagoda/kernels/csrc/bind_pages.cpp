#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind.hpp"
#include "pages.hpp"

namespace nb = nanobind;

namespace pagoda {

void bind_pages(nb::module_& m) {
  m.def("kv_write", [](uintptr_t pages, int64_t num_pages, int store, int64_t page_size, int64_t k_dim, int64_t v_dim,
                       uintptr_t k, int64_t k_token_stride, int64_t k_head_stride, uintptr_t v, int64_t v_token_stride,
                       int64_t v_head_stride, int dtype, uintptr_t page_ids, uintptr_t slots, int64_t tokens, int64_t heads,
                       bool wide_ids, int num_threads, const std::string& isa) {
    WriteArgs a;
    a.pages = at<char>(pages), a.num_pages = num_pages, a.shape = PageShape(Store(store), page_size, k_dim, v_dim);
    a.k = {at<char>(k), k_token_stride, k_head_stride}, a.v = {at<char>(v), v_token_stride, v_head_stride};
    a.dtype = Dtype(dtype), a.page_ids = at<void>(page_ids), a.slots = at<void>(slots);
    a.tokens = tokens, a.heads = heads, a.wide_ids = wide_ids;
    nb::gil_scoped_release release;
    kv_write(a, num_threads, isa);
  }, "Strides in bytes; v_dim 0: latent pages.");

  m.def("kv_compact", [](uintptr_t pages, int64_t num_pages, int64_t page_bytes, int64_t page_size,
                         const std::vector<std::pair<int64_t, int64_t>>& planes, uintptr_t src_pages, uintptr_t src_slots,
                         uintptr_t dst_pages, uintptr_t dst_slots, int64_t count, bool wide_ids) {
    std::vector<Plane> list;
    for (const auto& [first, bytes] : planes) list.push_back({first, bytes});
    nb::gil_scoped_release release;
    if (wide_ids)
      kv_compact(at<char>(pages), num_pages, page_bytes, page_size, list, at<int64_t>(src_pages), at<int64_t>(src_slots),
                 at<int64_t>(dst_pages), at<int64_t>(dst_slots), count);
    else
      kv_compact(at<char>(pages), num_pages, page_bytes, page_size, list, at<int32_t>(src_pages), at<int32_t>(src_slots),
                 at<int32_t>(dst_pages), at<int32_t>(dst_slots), count);
  }, "planes: (first byte, bytes a slot); all ids of one width.");

  m.def("copy_pages", [](uintptr_t pages, int64_t num_pages, int64_t page_bytes, uintptr_t src, uintptr_t dst, int64_t count,
                         bool wide_ids, int num_threads) {
    nb::gil_scoped_release release;
    if (wide_ids) copy_pages(at<char>(pages), num_pages, page_bytes, at<int64_t>(src), at<int64_t>(dst), count, num_threads);
    else copy_pages(at<char>(pages), num_pages, page_bytes, at<int32_t>(src), at<int32_t>(dst), count, num_threads);
  });
}

}  // namespace pagoda
