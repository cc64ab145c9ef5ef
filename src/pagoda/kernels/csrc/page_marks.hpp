// What is noted of a page when it is full, so that its score needs no look at its keys (page_scores.hpp draws the marks).
#pragma once

#include <cstdint>
#include <string>

#include "page_scores.hpp"

namespace pagoda {

// One page of one head.
struct PageMarkArgs {
  PageRule rule;
  PageShape shape;
  const char* page = nullptr;
  char* marks = nullptr;         // of the head, [room] pages
  int64_t room = 0, number = 0;  // pages there is room for; which of the head's this is
  const char* given = nullptr;   // as PageScoreArgs has it
  int64_t num_given = 0;
  const float* weights = nullptr;  // Marks::codes: [2][num_given]; the code of the largest product * first + second is a key's
  const float* metric = nullptr;   // Marks::codes: [dim][dim] that keys are multiplied with first, or null
  const float* freq = nullptr;     // [dim / 2] radians a position, by which keys are turned back to position 0; or null
  float* room_numbers = nullptr;   // page_mark_room()
};

constexpr int64_t kMarkPad = 16;  // slots that a body rounds a page's up to

inline int64_t page_mark_room(const PageMarkArgs& a) {
  const int64_t slots = (a.shape.page_size + kMarkPad - 1) / kMarkPad * kMarkPad;
  const int64_t matrix = Query(a.rule.query) == Query::project ? a.shape.k_dim * a.rule.channels() : 0;
  return 3 * slots * (a.shape.k_dim + 4) + 2 * a.shape.k_dim + matrix;
}

void mark_page(PageMarkArgs args, const std::string& isa);

PAGODA_DECLARE_BODIES(void, run_page_marks, (const PageMarkArgs&))

}  // namespace pagoda
