#include "attention.hpp"

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "parallel.hpp"

namespace pagoda {

namespace {

constexpr int64_t kParallelWork = 40 << 10;  // 1024 slots for 7 rows: below it, waking a thread costs more than it brings

template <typename Item, typename Act>
void for_each(const std::vector<Item>& items, int num_threads, Act act) {
  parallel_for(static_cast<int64_t>(items.size()), num_threads, [&](int64_t i) { act(items[i]); });
}

}  // namespace

void paged_attention(const AttentionArgs& a, int num_threads, const std::string& isa) {
  const auto item_body = PAGODA_BODY(isa, run_item);
  const auto merge_body = PAGODA_BODY(isa, run_merge);
  const auto sums_body = PAGODA_BODY(isa, run_sums);
  if (a.num_tokens < a.q_starts[a.num_seqs]) throw std::out_of_range("more queries in the table than tokens");
  const AttentionPlan plan = plan_attention(a, num_threads);
  if (plan.work < kParallelWork) num_threads = 1;
  AttentionScratch scratch;
  const std::unique_ptr<float[]> partials(new float[plan.num_partial_floats]);
  const std::unique_ptr<float[]> norms(a.prob_sums ? new float[2 * a.num_tokens * a.num_q_heads] : nullptr);
  scratch.partials = partials.get(), scratch.norms = norms.get();
  for_each(plan.items, num_threads, [&](const AttentionItem& item) { item_body(a, plan.spans.data(), item, scratch); });
  const int merge_threads = plan.num_partial_floats < kParallelWork ? 1 : num_threads;
  for_each(plan.merges, merge_threads, [&](const Merge& merge) { merge_body(a, merge, scratch); });
  if (a.prob_sums == nullptr) return;
  std::fill_n(a.prob_sums, a.num_seqs * a.num_kv_heads * a.sums_stride, 0.0f);
  for_each(plan.sums, num_threads, [&](const SumItem& item) { sums_body(a, item, scratch); });
}

}  // namespace pagoda
