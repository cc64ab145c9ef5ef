#include "bind.hpp"
#include "pages.hpp"

namespace nb = nanobind;

namespace pagoda {

namespace {

template <typename Id>
void write(const Pages& pages, Rows k, Rows v, uintptr_t ids, uintptr_t slots, int64_t tokens, int64_t heads) {
  kv_write<Id>(pages, k, v, at<Id>(ids), at<Id>(slots), tokens, heads);
}

}  // namespace

void bind_pages(nb::module_& m) {
  m.def("kv_write", [](uintptr_t pages, int64_t num_pages, int64_t page_size, int64_t k_bytes, int64_t v_bytes,
                       uintptr_t k, int64_t k_token_stride, int64_t k_head_stride,
                       uintptr_t v, int64_t v_token_stride, int64_t v_head_stride,
                       uintptr_t page_ids, uintptr_t slots, int64_t tokens, int64_t heads, bool wide_ids) {
    const Pages p{at<char>(pages), num_pages, page_size, k_bytes, v_bytes};
    const Rows kr{at<char>(k), k_token_stride, k_head_stride}, vr{at<char>(v), v_token_stride, v_head_stride};
    nb::gil_scoped_release release;
    if (wide_ids) write<int64_t>(p, kr, vr, page_ids, slots, tokens, heads);
    else write<int32_t>(p, kr, vr, page_ids, slots, tokens, heads);
  }, "Strides and sizes in bytes; v_bytes 0: latent pages.");

  m.def("kv_compact", [](uintptr_t pages, int64_t num_pages, int64_t page_size, int64_t k_bytes, int64_t v_bytes,
                         uintptr_t src_pages, uintptr_t src_slots, uintptr_t dst_pages, uintptr_t dst_slots,
                         int64_t count, bool wide_ids) {
    const Pages p{at<char>(pages), num_pages, page_size, k_bytes, v_bytes};
    nb::gil_scoped_release release;
    if (wide_ids)
      kv_compact(p, at<int64_t>(src_pages), at<int64_t>(src_slots), at<int64_t>(dst_pages), at<int64_t>(dst_slots), count);
    else
      kv_compact(p, at<int32_t>(src_pages), at<int32_t>(src_slots), at<int32_t>(dst_pages), at<int32_t>(dst_slots), count);
  }, "Sizes in bytes; all ids of one width.");

  m.def("copy_pages", [](uintptr_t pages, int64_t num_pages, int64_t page_bytes, uintptr_t src, uintptr_t dst, int64_t count,
                         bool wide_ids) {
    nb::gil_scoped_release release;
    if (wide_ids) copy_pages(at<char>(pages), num_pages, page_bytes, at<int64_t>(src), at<int64_t>(dst), count);
    else copy_pages(at<char>(pages), num_pages, page_bytes, at<int32_t>(src), at<int32_t>(dst), count);
  });
}

}  // namespace pagoda
