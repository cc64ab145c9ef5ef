#include "attention_memo.hpp"

#include <algorithm>
#include <cstdint>

namespace pagoda {

namespace {

// What a plan knows of a sequence's sums: they lie elsewhere in every layer.
int64_t summed_slots(const AttentionArgs& a, int64_t seq) { return a.summed(seq) ? a.sum_targets[seq].room() : 0; }

// Whether all that a call will read are pages.
bool all_pages(const AttentionArgs& a) {
  for (int64_t pair = 0; pair < a.num_seqs * a.num_kv_heads; ++pair) {
    const int64_t row = a.row_of[pair], blocks = (a.kv_lens[pair] + a.shape.page_size - 1) / a.shape.page_size;
    if (row < 0 || row >= a.num_rows || blocks > a.max_pages) return false;
    const int32_t* const ids = a.rows + row * a.max_pages;
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (int64_t i = 0; i < blocks; ++i) low = std::min(low, ids[i]), high = std::max(high, ids[i]);
    if (blocks > 0 && (int64_t{low} + a.offset[pair] < 0 || int64_t{high} + a.offset[pair] >= a.num_pages)) return false;
  }
  return true;
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
  if (!fixed_ || a.rows != m.rows || a.kv_lens != m.kv_lens)  // of a layer whose heads have pages of their own
    return !shares_ && std::equal(lens_.begin(), lens_.end(), a.kv_lens) && all_pages(a);
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
