// pagoda.kernels._cpu: plain addresses in, nothing of torch. The Python side (kernels/cpu.py) checks shapes and dtypes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>

#include "attention.hpp"
#include "cpu_features.hpp"
#include "linear.hpp"
#include "pages.hpp"
#include "parallel.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <typename T>
T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }

template <typename Id>
void write(const pagoda::Pages& pages, pagoda::Rows k, pagoda::Rows v, uintptr_t ids, uintptr_t slots, int64_t tokens, int64_t heads) {
  pagoda::kv_write<Id>(pages, k, v, at<Id>(ids), at<Id>(slots), tokens, heads);
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.doc() = "C++ kernels of Pagoda. Addresses are integers, strides and sizes as named.";
  m.attr("version") = PAGODA_VERSION;
  m.def("cpu_features", &pagoda::cpu_features, "Feature name -> usable on this machine (cpuid and xgetbv).");
  m.def("best_isa", &pagoda::best_isa, "The instruction set that the kernels choose here.");
  m.def("threading", &pagoda::threading, "'openmp': shares torch's threads; 'single': no OpenMP runtime in the process.");

  m.def("kv_write", [](uintptr_t pages, int64_t num_pages, int64_t page_size, int64_t k_bytes, int64_t v_bytes,
                       uintptr_t k, int64_t k_token_stride, int64_t k_head_stride,
                       uintptr_t v, int64_t v_token_stride, int64_t v_head_stride,
                       uintptr_t page_ids, uintptr_t slots, int64_t tokens, int64_t heads, bool wide_ids) {
    const pagoda::Pages p{at<char>(pages), num_pages, page_size, k_bytes, v_bytes};
    const pagoda::Rows kr{at<char>(k), k_token_stride, k_head_stride}, vr{at<char>(v), v_token_stride, v_head_stride};
    nb::gil_scoped_release release;
    if (wide_ids) write<int64_t>(p, kr, vr, page_ids, slots, tokens, heads);
    else write<int32_t>(p, kr, vr, page_ids, slots, tokens, heads);
  }, "Strides and sizes in bytes; v_bytes 0: latent pages.");

  m.def("kv_compact", [](uintptr_t pages, int64_t num_pages, int64_t page_size, int64_t k_bytes, int64_t v_bytes,
                         uintptr_t src_pages, uintptr_t src_slots, uintptr_t dst_pages, uintptr_t dst_slots,
                         int64_t count, bool wide_ids) {
    const pagoda::Pages p{at<char>(pages), num_pages, page_size, k_bytes, v_bytes};
    nb::gil_scoped_release release;
    if (wide_ids)
      pagoda::kv_compact(p, at<int64_t>(src_pages), at<int64_t>(src_slots), at<int64_t>(dst_pages), at<int64_t>(dst_slots), count);
    else
      pagoda::kv_compact(p, at<int32_t>(src_pages), at<int32_t>(src_slots), at<int32_t>(dst_pages), at<int32_t>(dst_slots), count);
  }, "Sizes in bytes; all ids of one width.");

  m.def("copy_pages", [](uintptr_t pages, int64_t num_pages, int64_t page_bytes, uintptr_t src, uintptr_t dst, int64_t count,
                         bool wide_ids) {
    nb::gil_scoped_release release;
    if (wide_ids) pagoda::copy_pages(at<char>(pages), num_pages, page_bytes, at<int64_t>(src), at<int64_t>(dst), count);
    else pagoda::copy_pages(at<char>(pages), num_pages, page_bytes, at<int32_t>(src), at<int32_t>(dst), count);
  });

  m.def("paged_attention", [](uintptr_t q, int64_t q_token_stride, int64_t q_head_stride, uintptr_t out, bool bf16,
                              uintptr_t pages, int64_t num_pages, int64_t page_size, int64_t k_dim, int64_t stored_v_dim,
                              int64_t v_dim, uintptr_t rows, int64_t num_rows, int64_t max_pages, uintptr_t row_of,
                              uintptr_t offset, uintptr_t kv_lens, uintptr_t q_starts, int64_t num_seqs,
                              int64_t num_tokens, int64_t num_q_heads, int64_t num_kv_heads, float scale, float soft_cap,
                              int64_t window, uintptr_t sinks, uintptr_t slopes, int num_threads, const std::string& isa) {
    pagoda::AttentionArgs a;
    a.q = at<void>(q), a.q_token_stride = q_token_stride, a.q_head_stride = q_head_stride, a.out = at<void>(out);
    a.dtype = bf16 ? pagoda::Dtype::bf16 : pagoda::Dtype::f32;
    a.pages = at<void>(pages), a.num_pages = num_pages, a.page_size = page_size;
    a.k_dim = k_dim, a.stored_v_dim = stored_v_dim, a.v_dim = v_dim;
    a.rows = at<int32_t>(rows), a.num_rows = num_rows, a.max_pages = max_pages, a.row_of = at<int32_t>(row_of);
    a.offset = at<int32_t>(offset), a.kv_lens = at<int32_t>(kv_lens), a.q_starts = at<int32_t>(q_starts);
    a.num_seqs = num_seqs, a.num_tokens = num_tokens, a.num_q_heads = num_q_heads, a.num_kv_heads = num_kv_heads;
    a.scale = scale, a.soft_cap = soft_cap, a.window = window;
    a.sinks = at<float>(sinks), a.slopes = at<float>(slopes);
    nb::gil_scoped_release release;
    pagoda::paged_attention(a, num_threads, isa);
  }, "Strides in elements; sinks and slopes 0 when unused; isa '' chooses the best.");

  m.attr("max_linear_tokens") = pagoda::kMaxLinearTokens;
  m.def("linear", [](uintptr_t x, uintptr_t weight, int64_t weight_stride, uintptr_t bias, uintptr_t out, int64_t tokens,
                     int64_t inputs, int64_t outputs, int num_threads, const std::string& isa) {
    const pagoda::LinearArgs a{at<uint16_t>(x), at<uint16_t>(weight), at<uint16_t>(bias), at<uint16_t>(out),
                               tokens, inputs, outputs, weight_stride};
    nb::gil_scoped_release release;
    pagoda::linear(a, num_threads, isa);
  }, "bfloat16 throughout; bias 0 when there is none.");
}
