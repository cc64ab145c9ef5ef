#include <nanobind/stl/string.h>

#include "bind.hpp"
#include "attention.hpp"

namespace nb = nanobind;

namespace pagoda {

void bind_attention(nb::module_& m) {
  m.def("paged_attention", [](uintptr_t q, int64_t q_token_stride, int64_t q_head_stride, uintptr_t out, bool bf16,
                              uintptr_t pages, int64_t num_pages, int64_t page_size, int64_t k_dim, int64_t stored_v_dim,
                              int64_t v_dim, uintptr_t rows, int64_t num_rows, int64_t max_pages, uintptr_t row_of,
                              uintptr_t offset, uintptr_t kv_lens, uintptr_t q_starts, int64_t num_seqs,
                              int64_t num_tokens, int64_t num_q_heads, int64_t num_kv_heads, float scale, float soft_cap,
                              int64_t window, uintptr_t sinks, uintptr_t slopes, int num_threads, const std::string& isa) {
    AttentionArgs a;
    a.q = at<void>(q), a.q_token_stride = q_token_stride, a.q_head_stride = q_head_stride, a.out = at<void>(out);
    a.dtype = bf16 ? Dtype::bf16 : Dtype::f32;
    a.pages = at<void>(pages), a.num_pages = num_pages, a.page_size = page_size;
    a.k_dim = k_dim, a.stored_v_dim = stored_v_dim, a.v_dim = v_dim;
    a.rows = at<int32_t>(rows), a.num_rows = num_rows, a.max_pages = max_pages, a.row_of = at<int32_t>(row_of);
    a.offset = at<int32_t>(offset), a.kv_lens = at<int32_t>(kv_lens), a.q_starts = at<int32_t>(q_starts);
    a.num_seqs = num_seqs, a.num_tokens = num_tokens, a.num_q_heads = num_q_heads, a.num_kv_heads = num_kv_heads;
    a.scale = scale, a.soft_cap = soft_cap, a.window = window;
    a.sinks = at<float>(sinks), a.slopes = at<float>(slopes);
    nb::gil_scoped_release release;
    paged_attention(a, num_threads, isa);
  }, "Strides in elements; sinks and slopes 0 when unused; isa '' chooses the best.");
}

}  // namespace pagoda
