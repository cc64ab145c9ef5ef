// Numbers on their way into encoded pages: the kinds of page_numbers.hpp whose codes depend on a page's numbers and a table alone, which are
// the grids, blocks of floats, centres and atoms. Each operation rounds as torch's does, so a page has the bytes that its codec's `encode` gives
// (kv/policies/_grids.py, bfp_outlier_rearrange.py, coupled_quantization.py); atoms but for what page_pursuit.hpp says.
#pragma once

#include "page_numbers.hpp"

namespace pagoda {

// One side of one page, and where its numbers are.
struct RawPage {
  const PageSide* side;
  const void* rows;   // [page_size][dim] floats, or bfloat16 where `half`
  bool half;
  int64_t page_size;
  uint8_t* page;
  int64_t head;       // of the side's table

  const float* table() const { return side->table ? side->table + head * side->table_stride : nullptr; }
};

PAGODA_DECLARE_BODIES(void, run_page_codes, (const RawPage&))

struct PageCodesArgs {
  uint8_t* pages = nullptr;  // [num_pages][page_bytes]
  int64_t num_pages = 0, page_bytes = 0, page_size = 0;
  const int64_t* ids = nullptr;  // [heads][count] pages to write
  int64_t heads = 0, count = 0;  // heads of one layer or of several, as tables have them
  bool half = false;
  struct Source {
    PageSide side;
    const char* numbers = nullptr;  // [heads][count * page_size or more][dim]
    int64_t head_bytes = 0;         // from one head to the next
  } sources[2];
};

// Throws std::out_of_range for an id outside the pages.
void page_codes(const PageCodesArgs& args, int num_threads, const std::string& isa);

}  // namespace pagoda
