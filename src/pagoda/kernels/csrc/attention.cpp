#include "attention.hpp"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "attention_memo.hpp"
#include "parallel.hpp"

namespace pagoda {

namespace {

constexpr int64_t kParallelWork = 40 << 10;  // 1024 slots for 7 rows: below it, waking a thread costs more than it brings

// The items of one call, and what is to be done with each.
struct Work {
  const AttentionArgs& args;
  const AttentionPlan& plan;
  AttentionMemo& memo;
  const AttentionScratch& scratch;
  decltype(&base::run_item) item_body;
  decltype(&base::run_merge) merge_body;
  decltype(&base::run_sums) sums_body;

  const AttentionItem* at(int64_t item) const { return item >= 0 && item < int64_t(plan.items.size()) ? &plan.items[item] : nullptr; }

  // `soon` as in run_item(). Whoever does the last part of a row merges them, while they still lie in its caches or the others work on, and
  // adds up what slots received while their keys do.
  void run(int64_t i, int64_t soon, bool cold) const {
    const AttentionItem& item = plan.items[i];
    item_body(args, plan.spans.data(), item, at(soon), cold, scratch);
    for (int32_t s = item.span_begin; s < item.span_end; ++s) {
      const int32_t merge = plan.spans[s].merge;
      if (merge >= 0 && !memo.complete(merge, parts_of(item))) continue;
      if (merge >= 0) merge_body(args, plan.merges[merge], scratch);
      const int32_t seq = plan.spans[s].seq;
      if (args.summed(seq) && args.at_once(seq)) sums_body(args, {seq, item.head, 0, args.kv_lens[args.pair(seq, item.head)]}, scratch);
    }
  }

  static int32_t parts_of(const AttentionItem& item) {
    return int32_t((item.slot_end + kPartSlots - 1) / kPartSlots - item.slot_begin / kPartSlots);
  }

  // What a thread that takes item i in turn will take after it is num_threads further, more or less.
  void run_in_turn(int num_threads) const {
    parallel_for(static_cast<int64_t>(plan.items.size()), num_threads, [&](int64_t i) { run(i, i + num_threads, i < num_threads); });
  }

  void run_stretches(int num_threads) const {
    parallel_for(memo.stretches().count(), num_threads, [&](int64_t item) {
      memo.stretches().walk(parallel_seat(int(item)), [&](int64_t i, int64_t soon, bool said) { run(i, soon, !said); });
    });
  }
};

}  // namespace

bool byte_products_allowed() {
  static const std::string said = [] {
    const char* value = std::getenv("PAGODA_KV_PRODUCTS");
    return std::string(value ? value : "");
  }();
  if (said == "" || said == "bytes") return true;
  if (said == "numbers") return false;
  throw std::invalid_argument("PAGODA_KV_PRODUCTS=" + said + "; accepted: bytes (int8 and int4 KV times rounded queries, the default), numbers");
}

void paged_attention(const AttentionArgs& args, int num_threads, const std::string& isa, AttentionMemo* memo) {
  AttentionArgs a = args;
  a.byte_products = args.byte_products && byte_products_allowed();
  a.wide_by_floats = isa_index(isa) == kSlowPairsIsa;
  auto item_body = PAGODA_BODY(isa, run_item);
#ifdef PAGODA_AMX
  if (isa_index(isa) == kTilesIsa && a.pairs()) item_body = &amx::run_item;
#endif
  const auto merge_body = PAGODA_BODY(isa, run_merge);
  const auto sums_body = PAGODA_BODY(isa, run_sums);
  if (a.num_tokens < a.q_starts[a.num_seqs]) throw std::out_of_range("more queries in the table than tokens");
  AttentionMemo own;
  if (memo == nullptr) memo = &own;
  const AttentionPlan& plan = memo->plan(a, num_threads);
  if (plan.work < kParallelWork) num_threads = 1;
  const AttentionScratch scratch{memo->partials(), a.sum_targets ? memo->norms(2 * a.num_tokens * a.num_q_heads) : nullptr};
  const Work work{a, plan, *memo, scratch, item_body, merge_body, sums_body};
  if (num_threads == 1 || plan.stretches.empty()) work.run_in_turn(num_threads);
  else work.run_stretches(num_threads);
  parallel_for(static_cast<int64_t>(plan.sums.size()), num_threads, [&](int64_t i) { sums_body(a, plan.sums[i], scratch); });
}

}  // namespace pagoda
