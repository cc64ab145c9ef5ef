// What one call of attention leaves to the next: memory, and its plan where the next call's tables say the same. The layers of a step
// differ in where their pages lie and in nothing else, so one plan serves them all (making it takes one thread 2.7 us for 4096 slots,
// while the others wait).
#pragma once

#include <atomic>
#include <memory>
#include <tuple>
#include <vector>

#include "attention.hpp"
#include "stretches.hpp"

namespace pagoda {

class AttentionMemo {
 public:
  // The plan of this call, whose tables hold what they held in the calls before if they lie at the same addresses. Everything below
  // is as a call needs it to begin. Throws as plan_attention().
  const AttentionPlan& plan(const AttentionArgs& args, int num_threads);

  float* partials() const { return partials_.get(); }
  Stretches& stretches() { return stretches_; }

  // Notes that `parts` more parts of a merge are done; true when they are all. What was written before by whoever noted some can be read.
  bool complete(int32_t merge, int32_t parts) { return left_[merge].fetch_sub(parts, std::memory_order_acq_rel) == parts; }

 private:
  bool serves(const AttentionArgs& args, int num_threads) const;

  AttentionArgs made_for_;  // its tables lie where the caller keeps them
  std::vector<int64_t> summed_;  // [S] slots that have a place for their sums, 0: not summed; or empty
  int num_threads_ = 0;     // 0: there is no plan
  AttentionPlan plan_;
  std::unique_ptr<float[]> partials_;
  std::unique_ptr<std::atomic<int32_t>[]> left_;  // parts of each merge that are not done
  Stretches stretches_;
};

}  // namespace pagoda
