#include "act_choice.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "hashes.hpp"
#include "window_sums.hpp"

namespace pagoda {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// float[slots] of a row, 0 behind what is remembered.
void read_row(const Remembered& of, int64_t row, int64_t slots, float* to) {
  const int64_t held = std::min(slots, of.width);
  std::copy_n(of.values + row * of.width, held, to);
  std::fill(to + held, to + slots, 0.0f);
}

// What a row's slots score, float[slots]; `second`: room for as many.
void score_row(const Act& act, int64_t row, int64_t slots, float* to, std::vector<float>& second) {
  read_row(act.first, row, slots, to);
  if (act.by != By::wanted && act.by != By::counted) return;
  second.resize(slots);
  read_row(act.second, row, slots, second.data());
  if (act.by == By::wanted) {
    for (int64_t i = 0; i < slots; ++i) to[i] = second[i] == 0.0f ? 0.0f : to[i];
  } else {
    const float whole = (slots ? *std::max_element(to, to + slots) : 0.0f) + 1.0f;
    for (int64_t i = 0; i < slots; ++i) to[i] = second[i] + to[i] / whole;
  }
}

// scores [rows][slots] of what is remembered of each slot.
void score(const Act& act, int64_t slots, std::vector<float>& scores) {
  scores.resize(act.rows * slots);
  std::vector<float> second;
  for (int64_t row = 0; row < act.rows; ++row) {
    float* const to = scores.data() + row * slots;
    score_row(act, row, slots, to, second);
    if (act.unvoted) std::fill(to + std::max<int64_t>(0, act.lens[row] - act.unvoted), to + slots, 0.0f);
  }
}

// What the newest queries give to the slots that are left, [rows][slots] each (window_sums.hpp).
struct Looked {
  std::vector<float> received, wanted, largest;
};

void number(const Act& act) {
  for (int64_t row = 0; row < act.rows; ++row) {
    const int64_t held = act.lens[row];
    if (held > act.positions.width) throw std::out_of_range("positions of " + std::to_string(act.positions.width) + " slots");
    for (int64_t slot = std::max<int64_t>(0, held - act.unnumbered); slot < held; ++slot)
      act.positions.values[row * act.positions.width + slot] = float(act.num_seen - held + slot);
  }
}

void look(const ReadArgs& pages, const Act& act, const std::vector<int64_t>& lens, int64_t slots, Looked& to, int num_threads) {
  number(act);
  std::vector<int64_t> positions(act.rows * slots);
  for (int64_t row = 0; row < act.rows; ++row)
    std::copy_n(act.positions.values + row * act.positions.width, lens[row], positions.data() + row * slots);
  for (int64_t i = 0; i < act.rows / act.heads * act.num_voters; ++i)
    if (act.voters[i] < 0 || act.voters[i] >= act.heads * act.group) throw std::out_of_range("query head " + std::to_string(act.voters[i]));
  const int64_t results = act.voters ? act.rows / act.heads * act.num_voters : act.rows;
  to.received.resize(results * slots), to.wanted.resize(results * slots), to.largest.resize(results * slots);
  WindowArgs a;
  a.read = pages, a.read.rows = act.bases, a.read.count = act.rows, a.read.width = act.width;
  a.lens = lens.data(), a.positions = positions.data(), a.slots = slots, a.heads = act.heads, a.group = act.group;
  a.queries = act.ring, a.dtype = act.dtype, a.window = std::min(act.places, act.num_seen), a.num_seen = act.num_seen;
  a.places = act.places, a.first_place = (act.num_seen - a.window) % act.places;
  a.scale = act.scale, a.soft_cap = act.soft_cap, a.voters = act.voters, a.num_voters = act.num_voters, a.received = to.received.data(), a.wanted = to.wanted.data();
  a.largest = to.largest.data();
  window_sums(a, num_threads, "");
}

// What a layer's voters give [layers][num_voters][slots] becomes the same for all its rows: [rows][slots].
void add_up(const Act& act, int64_t slots, std::vector<float>& received) {
  std::vector<float> rows(act.rows * slots);
  for (int64_t row = 0; row < act.rows; ++row)
    for (int64_t voter = 0; voter < act.num_voters; ++voter) {
      const float* const given = received.data() + (row / act.heads * act.num_voters + voter) * slots;
      for (int64_t slot = 0; slot < slots; ++slot) rows[row * slots + slot] += given[slot];
    }
  received = std::move(rows);
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

void choose(const char* pages, int64_t num_pages, const PageShape& shape, Act& act, int num_threads) {
  const std::vector<int64_t> lens(act.lens, act.lens + act.rows), budgets(act.budgets ? 0 : act.rows, act.budget);
  act.slots = *std::max_element(lens.begin(), lens.end());
  act.keep.resize(act.rows * act.slots);
  std::vector<float> scores;
  KeepBestArgs choice;
  choice.lens = lens.data(), choice.budgets = act.budgets ? act.budgets : budgets.data(), choice.rows = act.rows;
  choice.slots = choice.stride = act.slots, choice.keep = act.keep.data();
  choice.sinks = act.sinks, choice.recent = act.recent, choice.least = act.least, choice.pool = act.pool;
  ReadArgs read;
  read.pages = pages, read.num_pages = num_pages, read.shape = shape;
  if (act.by == By::hashes) {
    score_hashes(read, act, lens, act.slots, scores);
  } else if (act.by != By::age) {
    Looked looked;
    if (act.ring) {
      look(read, act, lens, act.slots, looked, num_threads);
      if (act.voters) add_up(act, act.slots, looked.received);
      act.first = {(act.by == By::largest ? looked.largest : looked.received).data(), act.slots}, act.second = {looked.wanted.data(), act.slots};
    }
    score(act, act.slots, scores);
    if (act.stem) choose_stem(act, scores.data(), act.slots), choice.pool = 1;
  }
  if (!scores.empty()) choice.scores = scores.data();
  keep_best(choice);
}

}  // namespace pagoda
