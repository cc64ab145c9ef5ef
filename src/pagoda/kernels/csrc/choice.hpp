// Which pages a decode step reads (Quest, arXiv:2406.10774; LServe, arXiv:2502.14866): a full page's keys lie in boxes, of which
// a sketch holds the corners, and the upper bound of query times key over its boxes is the page's score.
//
//   sketch of a page   [boxes][largest keys | smallest keys]     bound = max(q, 0) . largest + min(q, 0) . smallest
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attention.hpp"
#include "isa.hpp"

namespace pagoda {

// out[page] = the largest bound over the page's boxes and the query heads. queries [heads][width]: max(q, 0) beside min(q, 0);
// boxes [pages][boxes_per_page][width].
struct BoxScoreArgs {
  const float* queries = nullptr;
  const float* boxes = nullptr;
  int64_t heads = 0, width = 0, pages = 0, boxes_per_page = 0;
  float* out = nullptr;
};

PAGODA_DECLARE_BODIES(void, run_box_scores, (const BoxScoreArgs&))

// Sequences of one token each that read only some pages of a step, C of them; all layers L.
struct PageChoice {
  int64_t count = 0;
  const int32_t* seqs = nullptr;      // [C] of the batch
  const int32_t* boxes = nullptr;     // [C] boxes of a page
  const int64_t* sketches = nullptr;  // [L][C] addresses of float [H][room][boxes][2 * k_dim]
  const int64_t* room = nullptr;      // [L][C] pages that the sketches have room for
  const int32_t* full = nullptr;      // [L][C][H] full pages; one more is under way
  const int32_t* keep = nullptr;      // [L][C][H] full pages to read; where it is all of them nothing is scored
  const int64_t* scores = nullptr;    // [L][C] addresses of float [H][known], or 0: scores are not kept
  const int32_t* known = nullptr;     // [L][C] pages of kept scores; later ones count 0
  const int32_t* fresh = nullptr;     // [L][C] whether to score now (and to keep it, where there is a place)
};

// A layer's table in which the choosing (sequence, head) pairs have rows of their own: the chosen full pages in their order, then
// the page under way.
struct ChosenTable {
  std::vector<int32_t> rows, row_of, offset, kv_lens;
};

// Makes `args`, complete for the layer but for the choice, attend to what is chosen. The newest full page is always chosen.
void choose_pages(AttentionArgs& args, const PageChoice& choice, int64_t layer, int num_threads, const std::string& isa,
                  ChosenTable& table);

}  // namespace pagoda
