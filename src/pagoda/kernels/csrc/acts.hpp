// Acts of evictions of several sequences: first it is judged which slots of each stay, then in a second call they move up, and the
// sequence's table gives up the pages behind them. Between the two somebody finds pages for copies: of those that an act writes and that
// have other owners. An act that fails says so in its `error`; nobody else's act suffers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dtype.hpp"
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
  voted = 6,     // what the newest queries of `voters` give, the same for all rows of a layer
  largest = 7,   // the most that one of the newest tokens' queries gives
};

// Numbers remembered of each slot: [rows][width], what is behind `width` counts 0.
using Remembered = SlotRows;

// Of a row's runs, from the first to before the end.
struct Columns {
  int64_t first = 0, end = 0;
};

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
  int64_t unvoted = 0;  // of the newest slots, which score 0 before scores are pooled
  int64_t stem = 0, stem_budget = 0;  // of the first `stem` slots, where there are any, so many stay: no more, no fewer
  std::vector<Remembered> moved;      // with the slots
  std::vector<Remembered> cleared;    // what begins anew

  // By what the newest queries give, where that was not summed up on the way: `looked` of them lie in a ring of `places`, [layers][places]
  // [heads * group][k_dim] of dtype, the newest, of token num_seen - 1, at (num_seen - 1) % places. `positions` of the newest `unnumbered`
  // slots of each row, the newest tokens, are written first.
  const char* ring = nullptr;
  Dtype dtype = Dtype::f32;
  int64_t places = 0, num_seen = 0, unnumbered = 0;
  float scale = 1.0f, soft_cap = 0.0f;
  Remembered positions;
  const int64_t* voters = nullptr;  // [layers][num_voters] query heads of a layer
  int64_t num_voters = 0;

  // By::hashes: the newest `unhashed` slots of each row get theirs; planes [k_dim][bits], queries [rows][group][k_dim].
  const float *planes = nullptr, *queries = nullptr;
  int64_t bits = 0, unhashed = 0;
  int64_t group = 0, heads = 1;  // query heads of a row; rows of a layer

  // Slots `carrier` … `carrier + carried - 1` of `num_blended` rows become one in the first of them, their mean, in which that one
  // counts `weight`, a share of the whole.
  const int64_t* blended = nullptr;
  int64_t num_blended = 0, carrier = 0, carried = 0;
  float weight = 0.0f, other_weight = 0.0f;

  // Judged: what is written; whether a window that moves on links pages instead; slots that stay, [rows][slots]; slots that go.
  std::vector<Columns> written;
  bool links = false;
  std::vector<uint8_t> keep;
  int64_t slots = 0, dropped = 0;

  // Done: slots that every row can still take; runs that rows gave up behind their ends; whether what the next slots go to is nobody
  // else's; runs that have no owner any more, and such pages of runs of which others have.
  int64_t room = 0, num_cut = 0;
  bool tail_owned = true;
  std::vector<int32_t> freed, freed_pages;
  std::string error;
};

// Checks and judges. No page and no table is changed. `refs` [num_pages]: owners of each page.
void choose_acts(char* pages, int64_t num_pages, const PageShape& shape, int32_t* refs, const std::vector<Act*>& acts, int num_threads);

// Copies that these acts need at most, all on runs of one length: of a run that several of them write, whoever is left with it last
// needs none.
int64_t copies_of(const std::vector<Act*>& acts, const int32_t* refs);

// What was judged is done. Copies go to the runs `fresh`, which have one owner each already; how many were taken, from the first on.
// Whatever is given up has an owner less in `refs` at once, and what an act that fails gave up is noted like any other's.
size_t run_acts(char* pages, int64_t num_pages, const PageShape& shape, int32_t* refs, const std::vector<Act*>& acts,
                const std::vector<int32_t>& fresh, int num_threads);

}  // namespace pagoda
