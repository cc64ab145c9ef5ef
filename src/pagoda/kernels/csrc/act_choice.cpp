#include "act_choice.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "hashes.hpp"

namespace pagoda {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// float[slots] of a row, 0 behind what is remembered.
void read_row(const Remembered& of, int64_t row, int64_t slots, float* to) {
  const int64_t held = std::min(slots, of.width);
  std::copy_n(of.values + row * of.width, held, to);
  std::fill(to + held, to + slots, 0.0f);
}

// scores [rows][slots] of what is remembered of each slot.
void score(const Act& act, int64_t slots, std::vector<float>& scores) {
  scores.resize(act.rows * slots);
  const bool alone = act.by == By::mass || act.by == By::received;
  std::vector<float> second(alone ? 0 : slots);
  for (int64_t row = 0; row < act.rows; ++row) {
    float* const to = scores.data() + row * slots;
    read_row(act.first, row, slots, to);
    if (alone) continue;
    read_row(act.second, row, slots, second.data());
    if (act.by == By::wanted) {
      for (int64_t i = 0; i < slots; ++i) to[i] = second[i] == 0.0f ? 0.0f : to[i];
    } else {
      const float whole = (slots ? *std::max_element(to, to + slots) : 0.0f) + 1.0f;
      for (int64_t i = 0; i < slots; ++i) to[i] = second[i] + to[i] / whole;
    }
  }
}

// Of the first `stem` slots of each row the best become infinitely good and the others infinitely bad.
void choose_stem(const Act& act, float* scores, int64_t slots) {
  const std::vector<int64_t> lens(act.rows, act.stem), budgets(act.rows, act.stem_budget);
  std::vector<uint8_t> keep(act.rows * act.stem);
  std::vector<float> pooled(slots);
  for (int64_t row = 0; row < act.rows; ++row) {
    float* const mine = scores + row * slots;
    std::copy_n(pool_mean(mine, slots, act.pool, pooled), slots, mine);
  }
  KeepBestArgs best;
  best.scores = scores, best.stride = slots, best.lens = lens.data(), best.budgets = budgets.data();
  best.rows = act.rows, best.slots = act.stem, best.least = -kInfinity, best.keep = keep.data();
  keep_best(best);
  for (int64_t row = 0; row < act.rows; ++row)
    for (int64_t i = 0; i < act.stem; ++i) scores[row * slots + i] = keep[row * act.stem + i] ? kInfinity : -kInfinity;
}

void score_hashes(const ReadArgs& pages, const Act& act, const std::vector<int64_t>& lens, int64_t slots, std::vector<float>& scores) {
  std::vector<int64_t> first(lens);
  for (int64_t& one : first) one -= act.unhashed;
  ReadArgs read = pages;
  read.rows = act.bases, read.count = act.rows, read.width = act.width, read.first = first.data(), read.slots = act.unhashed;
  hash_slots(read, act.planes, act.bits, act.first.values, act.first.width, act.first.width, "");
  scores.resize(act.rows * slots);
  if (slots > act.first.width) throw std::out_of_range("hashes of " + std::to_string(act.first.width) + " slots");
  hash_scores({act.first.values, act.first.width, act.rows, slots, nullptr, act.group, act.bits, scores.data()}, act.queries,
              pages.shape.k_dim, act.planes, "");
}

}  // namespace

void choose(const char* pages, int64_t num_pages, const PageShape& shape, Act& act) {
  const std::vector<int64_t> lens(act.lens, act.lens + act.rows), budgets(act.budgets ? 0 : act.rows, act.budget);
  act.slots = *std::max_element(lens.begin(), lens.end());
  act.keep.resize(act.rows * act.slots);
  std::vector<float> scores;
  KeepBestArgs choice;
  choice.lens = lens.data(), choice.budgets = act.budgets ? act.budgets : budgets.data(), choice.rows = act.rows;
  choice.slots = choice.stride = act.slots, choice.keep = act.keep.data();
  choice.sinks = act.sinks, choice.recent = act.recent, choice.least = act.least, choice.pool = act.pool;
  if (act.by == By::hashes) {
    ReadArgs read;
    read.pages = pages, read.num_pages = num_pages, read.shape = shape;
    score_hashes(read, act, lens, act.slots, scores);
  } else if (act.by != By::age) {
    score(act, act.slots, scores);
    if (act.stem) choose_stem(act, scores.data(), act.slots), choice.pool = 1;
  }
  if (!scores.empty()) choice.scores = scores.data();
  keep_best(choice);
}

}  // namespace pagoda
