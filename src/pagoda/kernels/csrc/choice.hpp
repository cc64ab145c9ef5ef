// Which pages a decode step reads: those whose scores (page_scores.hpp) are best, chosen layer by layer within a step.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attention.hpp"
#include "moved_pages.hpp"
#include "page_marks.hpp"
#include "page_scores.hpp"
#include "stretches.hpp"

namespace pagoda {

// Sequences of one token each that read only some pages of a step, C of them; all layers L, kv-heads H. The arrays are those of
// kernels/step.py's PageChoice, in its order.
struct PageChoice {
  int64_t count = 0;
  const int32_t* seqs = nullptr;       // [C] of the batch
  const PageRule* rules = nullptr;     // [C]
  const float* alike = nullptr;        // [C] cosine above which a query keeps the last one's scores; 0: never
  const float* persist = nullptr;      // [C] share of the last step's votes that still counts; below 0: heads do not vote
  const int64_t* marks = nullptr;      // [L][C] addresses of [H][room] pages' marks
  const int64_t* room = nullptr;       // [L][C]
  const int64_t* given = nullptr;      // [L][C] addresses of [H] of what the rule is given, or 0
  const int32_t* num_given = nullptr;  // [L][C]
  const int64_t* turn = nullptr;       // [L][C] addresses of float [dim], or 0
  const int32_t* outliers = nullptr;   // [L][C]
  const int32_t* full = nullptr;       // [L][C][H] full pages; one more is under way
  const int32_t* keep = nullptr;       // [L][C][H] full pages to read
  const int64_t* scores = nullptr;     // [L][C][H] addresses of `full` numbers at least, where scores are kept, or 0
  const uint8_t* fresh = nullptr;      // [L][C][H] whether to score now (and to keep it, where there is a place)
  const int64_t* turns = nullptr;      // [L][C] addresses of [pages][dim]: turns by so many pages, where keys move; or 0
  const int64_t* query = nullptr;      // [L][C] addresses of [Hq * dim], the query that last scored, where `alike`; or 0
  const int64_t* noted = nullptr;      // [L][C] addresses of int64 [H], full pages whose marks are there: the others' are made first; or 0
  const int64_t* weights = nullptr;    // [L][C] addresses of float [H][2][num_given], with which codes are found; or 0
  const int64_t* metric = nullptr;     // [L][C] addresses of float [H][dim][dim], in which they are near; or 0
  const int64_t* freq = nullptr;       // [L][C] addresses of float [dim / 2], by which noted keys are turned back; or 0
};

// What M of the sequences read in a layer where keys move: copies of the chosen pages, of a sequence one head after the other. They
// are a batch of their own, attended to in one call.
struct MovedPages {
  std::vector<int32_t> seqs, of;  // [M] of the batch; [C] which of them a choosing sequence is, or -1
  std::vector<int64_t> first;     // [M + 1] of the copies
  int64_t width = 0;              // pages of a row of the table
  std::vector<char> pages, q, out;
  std::vector<int32_t> rows, row_of, offset, kv_lens, q_starts;

  int64_t count() const { return int64_t(seqs.size()); }
};

// A layer's table in which the choosing (sequence, head) pairs have rows of their own: the chosen full pages in their order, then
// the page under way.
struct ChosenTable {
  std::vector<int32_t> rows, row_of, offset, kv_lens;
  MovedPages moved;  // whose sequences have but one slot in the table
  // While it is written: [C] sequences whose scores of an earlier query serve; what is each thread's.
  std::vector<uint8_t> stale;
  std::vector<int32_t> starts;
  Stretches stretches;
};

// Makes `args`, complete for the layer but for the choice, attend to what is chosen. The newest full page is always chosen. Pages that
// became full since the last step are noted before that.
void choose_pages(AttentionArgs& args, const PageChoice& choice, int64_t layer, int num_threads, const std::string& isa,
                  ChosenTable& table);

// Attends for the sequences whose keys moved, once `args` (what choose_pages made, attended to) is done; where they are all of the
// batch, `args` need not be.
void attend_moved(const AttentionArgs& args, MovedPages& moved, int num_threads, const std::string& isa);

}  // namespace pagoda
