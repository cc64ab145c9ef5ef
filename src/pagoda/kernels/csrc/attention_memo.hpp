// What one call of attention leaves to the next: memory, and its plan where the next call's tables say the same. The layers of a step
// differ in where their pages lie and in nothing else, so one plan serves them all (making it takes one thread 2.7 us for 4096 slots,
// while the others wait), also where each head has pages of its own, as long as no two sequences share any. The next step has the memory, too: nothing is allocated unless it is longer than all before.
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
  // `fixed`: between two forget(), tables hold what they held where they lie. Otherwise rows and lengths may be others, as where pages are chosen
  // layer by layer into one table.
  explicit AttentionMemo(bool fixed = true) : fixed_(fixed) {}

  // The plan of this call. Everything below is as a call needs it to begin. Throws as plan_attention().
  const AttentionPlan& plan(const AttentionArgs& args, int num_threads);

  // What tables say may have changed where they lie; memory stays.
  void forget() { num_threads_ = 0; }

  float* partials() const {  // at the beginning of a line
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(partials_.get()) + 63) / 64 * 64);
  }

  // Room for so many floats, until the next call.
  float* norms(int64_t count) {
    norms_.need(count);
    return norms_.get();
  }
  Stretches& stretches() { return stretches_; }

  // Notes that `parts` more parts of a merge are done; true when they are all. What was written before by whoever noted some can be read.
  bool complete(int32_t merge, int32_t parts) { return left_.get()[merge].fetch_sub(parts, std::memory_order_acq_rel) == parts; }

 private:
  // An array that grows and is never copied.
  template <typename T>
  class Room {
   public:
    T* get() const { return data_.get(); }
    void need(int64_t count) {
      if (count <= size_) return;
      size_ = 0, data_.reset();  // not both at once
      data_.reset(new T[count]);
      size_ = count;
    }

   private:
    std::unique_ptr<T[]> data_;
    int64_t size_ = 0;
  };

  bool serves(const AttentionArgs& args, int num_threads) const;

  const bool fixed_;
  AttentionArgs made_for_;  // its tables lie where the caller keeps them
  std::vector<int32_t> lens_;  // [S][H] of the plan: where layers have pages of their own, their lengths may be the same
  bool shares_ = false;     // rows of several sequences are one item of it, by their pages
  std::vector<int64_t> summed_;  // [S] slots that have a place for their sums, 0: not summed
  std::vector<char> weighted_;   // [S] whether its slots have weights: it shares no item with others then
  int num_threads_ = 0;     // 0: there is no plan
  AttentionPlan plan_;
  Room<float> partials_, norms_;
  Room<std::atomic<int32_t>> left_;  // parts of each merge that are not done
  Stretches stretches_;
};

}  // namespace pagoda
