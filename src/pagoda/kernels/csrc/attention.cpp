#include "attention.hpp"

#include <algorithm>
#include <cstdlib>
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

// What a thread that takes item i will take after it: items go to the threads in turn, more or less.
const AttentionItem* item_after(const AttentionPlan& plan, const AttentionItem& item, int num_threads) {
  const auto next = static_cast<size_t>(&item - plan.items.data() + num_threads);
  return next < plan.items.size() ? &plan.items[next] : nullptr;
}

// What the environment says about products of bytes, read once.
bool bytes_allowed() {
  static const std::string said = [] {
    const char* value = std::getenv("PAGODA_KV_PRODUCTS");
    return std::string(value ? value : "");
  }();
  if (said == "" || said == "bytes") return true;
  if (said == "numbers") return false;
  throw std::invalid_argument("PAGODA_KV_PRODUCTS=" + said + "; accepted: bytes (int8 KV times rounded queries, the default), numbers");
}

}  // namespace

void paged_attention(const AttentionArgs& args, int num_threads, const std::string& isa) {
  AttentionArgs a = args;
  a.byte_products = args.byte_products && bytes_allowed();
  const auto item_body = PAGODA_BODY(isa, run_item);
  const auto merge_body = PAGODA_BODY(isa, run_merge);
  const auto sums_body = PAGODA_BODY(isa, run_sums);
  if (a.num_tokens < a.q_starts[a.num_seqs]) throw std::out_of_range("more queries in the table than tokens");
  const AttentionPlan plan = plan_attention(a, num_threads);
  if (plan.work < kParallelWork) num_threads = 1;
  AttentionScratch scratch;
  const std::unique_ptr<float[]> partials(new float[plan.num_partial_floats]);
  const std::unique_ptr<float[]> norms(a.sum_targets ? new float[2 * a.num_tokens * a.num_q_heads] : nullptr);
  scratch.partials = partials.get(), scratch.norms = norms.get();
  for_each(plan.items, num_threads, [&](const AttentionItem& item) {
    item_body(a, plan.spans.data(), item, item_after(plan, item, num_threads), scratch);
  });
  const int merge_threads = plan.num_partial_floats < kParallelWork ? 1 : num_threads;
  for_each(plan.merges, merge_threads, [&](const Merge& merge) { merge_body(a, merge, scratch); });
  for_each(plan.sums, num_threads, [&](const SumItem& item) { sums_body(a, item, scratch); });
}

}  // namespace pagoda
