#include "attention_memo.hpp"

#include <algorithm>
#include <utility>

namespace pagoda {

namespace {

// What a plan knows of a sequence's sums: they lie elsewhere in every layer.
int64_t summed_slots(const AttentionArgs& a, int64_t seq) { return a.summed(seq) ? a.sum_targets[seq].room() : 0; }

// Whether all numbers of `count` plus those of `further_count`, whichever two meet, are pages.
bool all_pages(const int32_t* ids, int64_t count, const int32_t* further, int64_t further_count, int64_t num_pages) {
  if (count == 0 || further_count == 0) return true;
  const auto range = [](const int32_t* at, int64_t n) {
    int32_t low = at[0], high = at[0];
    for (int64_t i = 1; i < n; ++i) low = std::min(low, at[i]), high = std::max(high, at[i]);
    return std::pair<int64_t, int64_t>(low, high);
  };
  const auto [low, high] = range(ids, count);
  const auto [least, most] = range(further, further_count);
  return low + least >= 0 && high + most < num_pages;
}

}  // namespace

bool AttentionMemo::serves(const AttentionArgs& a, int num_threads) const {
  const AttentionArgs& m = made_for_;
  const auto tables = [](const AttentionArgs& x) {
    return std::tie(x.row_of, x.q_starts, x.chunk_starts, x.are_wide, x.num_rows, x.max_pages, x.num_seqs);
  };
  const auto shapes = [](const AttentionArgs& x) {
    return std::tie(x.num_q_heads, x.num_kv_heads, x.shape.page_size, x.shape.k_dim, x.v_dim, x.window, x.share_prefixes);
  };
  if (num_threads != num_threads_ || tables(a) != tables(m) || shapes(a) != shapes(m)) return false;
  for (int64_t seq = 0; seq < a.num_seqs; ++seq)
    if (summed_slots(a, seq) != summed_[seq] || a.weighted(seq) != bool(weighted_[seq])) return false;
  const int64_t pairs = a.num_seqs * a.num_kv_heads;
  if (a.rows != m.rows || a.kv_lens != m.kv_lens)  // of a layer whose heads have pages of their own
    return !shares_ && std::equal(lens_.begin(), lens_.end(), a.kv_lens) &&
           all_pages(a.rows, a.num_rows * a.max_pages, a.offset, pairs, a.num_pages);
  const int64_t further = pairs > 0 ? int64_t{a.offset[0]} - m.offset[0] : 0;
  for (int64_t pair = 0; pair < pairs; ++pair)
    if (int64_t{a.offset[pair]} - m.offset[pair] != further) return false;
  return plan_.first_page + further >= 0 && plan_.last_page + further < a.num_pages;
}

const AttentionPlan& AttentionMemo::plan(const AttentionArgs& args, int num_threads) {
  if (!serves(args, num_threads)) {
    num_threads_ = 0;  // should it throw
    plan_attention(args, num_threads, plan_);
    partials_.need(plan_.num_partial_floats + 15);
    left_.need(int64_t(plan_.merges.size()));
    summed_.resize(args.num_seqs), weighted_.resize(args.num_seqs);
    lens_.assign(args.kv_lens, args.kv_lens + args.num_seqs * args.num_kv_heads);
    shares_ = std::any_of(plan_.items.begin(), plan_.items.end(), [](const AttentionItem& i) { return i.span_end - i.span_begin > 1; });
    for (int64_t seq = 0; seq < args.num_seqs; ++seq) summed_[seq] = summed_slots(args, seq), weighted_[seq] = args.weighted(seq);
    made_for_ = args, num_threads_ = num_threads;
  }
  for (size_t i = 0; i < plan_.merges.size(); ++i) left_.get()[i].store(int32_t(plan_.merges[i].count), std::memory_order_relaxed);
  if (!plan_.stretches.empty()) stretches_.reset(plan_.stretches);
  return plan_;
}

}  // namespace pagoda
