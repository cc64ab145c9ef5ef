#include "attention_memo.hpp"

namespace pagoda {

namespace {

// What a plan knows of sums: they lie elsewhere in every layer.
std::vector<int64_t> sums_of(const AttentionArgs& a) {
  std::vector<int64_t> room(a.sum_targets ? a.num_seqs : 0);
  for (size_t seq = 0; seq < room.size(); ++seq) room[seq] = a.summed(seq) ? a.sum_targets[seq].room() : 0;
  return room;
}

}  // namespace

bool AttentionMemo::serves(const AttentionArgs& a, int num_threads) const {
  const AttentionArgs& m = made_for_;
  const auto tables = [](const AttentionArgs& x) {
    return std::tie(x.rows, x.row_of, x.kv_lens, x.q_starts, x.chunk_starts, x.num_rows, x.max_pages, x.num_seqs);
  };
  const auto shapes = [](const AttentionArgs& x) {
    return std::tie(x.num_q_heads, x.num_kv_heads, x.shape.page_size, x.shape.k_dim, x.v_dim, x.window, x.share_prefixes);
  };
  if (sums_of(a) != summed_) return false;
  if (num_threads != num_threads_ || tables(a) != tables(m) || shapes(a) != shapes(m)) return false;
  const int64_t pairs = a.num_seqs * a.num_kv_heads, further = pairs > 0 ? int64_t{a.offset[0]} - m.offset[0] : 0;
  for (int64_t pair = 0; pair < pairs; ++pair)
    if (int64_t{a.offset[pair]} - m.offset[pair] != further) return false;
  return plan_.first_page + further >= 0 && plan_.last_page + further < a.num_pages;
}

const AttentionPlan& AttentionMemo::plan(const AttentionArgs& args, int num_threads) {
  if (!serves(args, num_threads)) {
    num_threads_ = 0;  // should it throw
    plan_ = plan_attention(args, num_threads);
    partials_.reset(new float[plan_.num_partial_floats]);
    left_.reset(new std::atomic<int32_t>[plan_.merges.size()]);
    made_for_ = args, summed_ = sums_of(args), num_threads_ = num_threads;
  }
  for (size_t i = 0; i < plan_.merges.size(); ++i) left_[i].store(int32_t(plan_.merges[i].count), std::memory_order_relaxed);
  if (!plan_.stretches.empty()) stretches_.reset(plan_.stretches);
  return plan_;
}

}  // namespace pagoda
