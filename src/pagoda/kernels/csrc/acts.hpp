// Acts of evictions from beginning to end, of several sequences in one call: which slots stay is judged and chosen, they move up, and the
// sequence's table gives up the pages behind them. A table that comes here shares no page with anybody.
#pragma once

#include <cstdint>
#include <vector>

#include "slots.hpp"

namespace pagoda {

// What a slot's score is made of; kv/policies/base.py has the same list.
enum class By : int32_t {
  age = 0,       // newer is better
  mass = 1,      // first
  received = 2,  // first
  counted = 3,   // second + first / (1 + the row's largest first)
  wanted = 4,    // first where second is not 0, else 0
  hashes = 5,    // how well the hash in `first` agrees with those of the newest queries
};

// Numbers remembered of each slot: [rows][width], what is behind `width` counts 0.
using Remembered = SlotRows;

struct Act {
  // The sequence's table, [rows][width] bases of runs of `run` pages; `counts` of them and `lens` slots [rows] are held. Written.
  int32_t* bases = nullptr;
  int64_t rows = 0, width = 0, run = 1;
  int32_t *counts = nullptr, *lens = nullptr;

  // Where it slides, of a table of one row: the first `sinks` slots stay and those from `from` on.
  bool slides = false;
  int64_t from = 0;

  // Else, of a table of a row for each head (run 1): see KeepBestArgs.
  By by = By::age;
  Remembered first, second;
  const int64_t* budgets = nullptr;  // [rows]; null: `budget` for all
  int64_t budget = 0, sinks = 0, recent = 0, pool = 1;
  float least = 0.0f;
  int64_t stem = 0, stem_budget = 0;  // of the first `stem` slots, where there are any, so many stay: no more, no fewer
  std::vector<Remembered> moved;      // with the slots
  std::vector<Remembered> cleared;    // what begins anew

  // By::hashes: the newest `unhashed` slots of each row get theirs; planes [k_dim][bits], queries [rows][group][k_dim].
  const float *planes = nullptr, *queries = nullptr;
  int64_t bits = 0, group = 0, unhashed = 0;

  // Slots `carrier` … `carrier + carried - 1` of `num_blended` rows become one in the first of them, their mean, in which that one
  // counts `weight`, a share of the whole.
  const int64_t* blended = nullptr;
  int64_t num_blended = 0, carrier = 0, carried = 0;
  float weight = 0.0f, other_weight = 0.0f;

  // Found: slots that went, slots that every row can still take, runs given up.
  int64_t dropped = 0, room = 0;
  std::vector<int32_t> freed;
};

// `refs` [num_pages]: owners of each page; those of pages that are given up become 0. All tables are checked before anything is changed:
// std::out_of_range for a page or slot that is not there, std::logic_error for a page with another owner.
void run_acts(char* pages, int64_t num_pages, const PageShape& shape, int32_t* refs, const std::vector<Act*>& acts, int num_threads);

}  // namespace pagoda
