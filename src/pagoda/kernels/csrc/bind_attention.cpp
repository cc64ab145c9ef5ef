#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "attention.hpp"
#include "bind.hpp"
#include "bind_sides.hpp"

namespace nb = nanobind;

namespace pagoda {

void bind_attention(nb::module_& m) {
  m.def("page_bytes", [](int store, int64_t page_size, int64_t k_dim, int64_t v_dim) {
    return PageShape(Store(store), page_size, k_dim, v_dim).page_bytes;
  }, "Bytes of a page as the kernels see it; kernels/layout.py must agree.");

  m.def("byte_products_allowed", &byte_products_allowed, "By PAGODA_KV_PRODUCTS; throws for a value that is none.");

  m.def("attention_plan", [](uintptr_t rows, int64_t num_rows, int64_t max_pages, uintptr_t row_of, uintptr_t offset,
                             uintptr_t kv_lens, uintptr_t q_starts, int64_t num_seqs, int64_t num_q_heads, int64_t num_kv_heads,
                             int64_t page_size, int64_t k_dim, int64_t v_dim, int64_t window, bool share_prefixes, int num_threads) {
    AttentionArgs a;
    a.shape = PageShape(Store::f32, page_size, k_dim, v_dim), a.v_dim = v_dim;
    a.rows = at<int32_t>(rows), a.num_rows = num_rows, a.max_pages = max_pages, a.row_of = at<int32_t>(row_of);
    a.offset = at<int32_t>(offset), a.kv_lens = at<int32_t>(kv_lens), a.q_starts = at<int32_t>(q_starts);
    a.num_pages = INT32_MAX, a.num_seqs = num_seqs, a.num_q_heads = num_q_heads, a.num_kv_heads = num_kv_heads;
    a.window = window, a.share_prefixes = share_prefixes;
    AttentionPlan plan;
    plan_attention(a, num_threads, plan);
    std::vector<std::tuple<std::vector<int>, int, int, int>> items;
    for (const AttentionItem& item : plan.items) {
      std::vector<int> seqs;
      for (int s = item.span_begin; s < item.span_end; ++s) seqs.push_back(plan.spans[s].seq);
      items.emplace_back(seqs, item.head, item.slot_begin, item.slot_end);
    }
    return std::make_tuple(items, plan.stretches);
  }, "The items that threads take: (sequences, kv-head, first slot, last slot + 1), and where each thread's begin.");

  m.def("paged_attention", [](uintptr_t q, int64_t q_token_stride, int64_t q_head_stride, uintptr_t out, int dtype,
                              uintptr_t pages, int64_t num_pages, int store, int64_t page_size, int64_t k_dim,
                              int64_t stored_v_dim, int64_t v_dim, uintptr_t rows, int64_t num_rows, int64_t max_pages,
                              uintptr_t row_of, uintptr_t offset, uintptr_t kv_lens, uintptr_t q_starts, uintptr_t are_wide, int64_t num_seqs,
                              int64_t num_tokens, int64_t num_q_heads, int64_t num_kv_heads, float scale, float soft_cap,
                              int64_t window, uintptr_t sinks, uintptr_t slopes, uintptr_t prob_sums, uintptr_t prob_counts, int64_t sums_stride,
                              uintptr_t sum_last, bool share_prefixes, bool byte_products, const std::vector<CodedSides*>& coded_sides,
                              const std::vector<uintptr_t>& raw, const std::vector<std::pair<uintptr_t, int64_t>>& weights, int num_threads,
                              const std::string& isa) {
    AttentionArgs a;
    a.q = at<void>(q), a.q_token_stride = q_token_stride, a.q_head_stride = q_head_stride, a.out = at<void>(out);
    a.dtype = Dtype(dtype);
    a.pages = at<char>(pages), a.num_pages = num_pages;
    a.shape = PageShape(Store(store), page_size, k_dim, stored_v_dim), a.v_dim = v_dim;
    a.rows = at<int32_t>(rows), a.num_rows = num_rows, a.max_pages = max_pages, a.row_of = at<int32_t>(row_of);
    a.offset = at<int32_t>(offset), a.kv_lens = at<int32_t>(kv_lens), a.q_starts = at<int32_t>(q_starts);
    a.are_wide = at<uint8_t>(are_wide), a.num_seqs = num_seqs, a.num_tokens = num_tokens, a.num_q_heads = num_q_heads, a.num_kv_heads = num_kv_heads;
    a.scale = scale, a.soft_cap = soft_cap, a.window = window;
    a.sinks = at<float>(sinks), a.slopes = at<float>(slopes);
    a.share_prefixes = share_prefixes, a.byte_products = byte_products;
    CodedPages coded;
    std::vector<RawSlots> slots;
    if (!coded_sides.empty()) {
      const CodedSides& sides = *coded_sides[0];
      const auto of = [&](int i, int64_t seq) { return at<int64_t>(raw.at(i))[seq]; };
      for (int64_t seq = 0; seq < num_seqs; ++seq)
        slots.push_back({reinterpret_cast<char*>(of(0, seq)), reinterpret_cast<char*>(of(1, seq)), of(2, seq), of(3, seq)});
      slots.push_back({});
      coded = {sides.of.at(0), sides.of.at(1), Store(dtype), slots.data()};
      a.coded = &coded, a.shape.page_bytes = sides.page_bytes;
    }
    std::vector<SumTarget> targets;
    if (prob_sums) {
      const int64_t each = num_kv_heads * sums_stride;
      for (const uintptr_t numbers : {prob_sums, prob_counts})
        if (numbers) std::fill_n(at<float>(numbers), num_seqs * each, 0.0f);
      for (int64_t seq = 0; seq < num_seqs; ++seq)
        targets.push_back({at<float>(prob_sums) + seq * each, prob_counts ? at<float>(prob_counts) + seq * each : nullptr, sums_stride,
                           sums_stride, sum_last ? at<int64_t>(sum_last)[seq] : 0});
      targets.push_back({});  // so that there is an address where there are no sequences
      a.sum_targets = targets.data();
    }
    std::vector<SlotWeights> weights_of;
    for (const auto& [logs, width] : weights) weights_of.push_back({at<float>(logs), width});
    if (!weights.empty()) a.weights = weights_of.data();
    nb::gil_scoped_release release;
    paged_attention(a, num_threads, isa);
  }, "Strides in elements; sinks, slopes and prob_sums 0 when unused; of pages that were encoded whole one CodedSides (keys, values; else none) "
     "and raw: [S] addresses of keys, of values, first slots, room; weights (address, width) of each sequence, or none; isa '' chooses the best.");
}

}  // namespace pagoda
