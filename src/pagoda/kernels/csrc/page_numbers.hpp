// Pages that a codec encoded whole, as numbers again (kv/policies/_windowed.py): one side of a page, its keys or its values.
//
// Slots of a page are rows of codes; what else a kind needs lies at the byte offsets `at`, in this order:
//
//   channel_grid  bits, codes, grids              number = code * scale[d] + least[d], grids bfloat16 [2][dim]
//   token_grid    bits, codes, grids              the same for 32 columns of a slot, grids bfloat16 [slots][2][groups]
//   zip_keys      mask, high, low, grid           4 bits where the mask has the slot, else 2; grid bfloat16 [least, span][dim]
//   zip_values    mask, high, low, roots, grid    roots bfloat16 [dim], grid bfloat16 [slots][floor, width]
//   block_floats  bits, codes, exponents, block   table: where each column goes [dim], or none
//   coupled       codes                           table [groups][256][4]
//   atoms         index, weight, unit, nonzeros   table [256][dim]
//   columns       mask, kept, num_kept            bfloat16 of the columns in the mask, the others 0
//   basis         first, rank, group              bfloat16 coordinates, a share of the rank on each page of a group of heads;
//                                                 table [rank][dim], or none: the numbers themselves
//   spread        first, width                    `width` bfloat16 on the page of every head, in their order, make the rows
//                                                 [dim] of some heads; table [1]: the row
#pragma once

#include <cstdint>
#include <string>

#include "isa.hpp"

namespace pagoda {

enum class CodeKind : int32_t {
  channel_grid, token_grid, zip_keys, zip_values, block_floats, coupled, atoms, columns, basis, spread
};

constexpr int64_t kMostDim = 512;  // columns of a row

struct PageSide {
  CodeKind kind = CodeKind::basis;
  int64_t at[5] = {0, 0, 0, 0, 0};
  const float* table = nullptr;  // [heads][table_stride]
  int64_t table_stride = 0, dim = 0;

  // Whether a page's numbers lie on other heads' pages, too.
  bool of_others() const { return kind == CodeKind::spread || (kind == CodeKind::basis && at[2] > 1); }
};

// One side of one page, and where its numbers go.
struct EncodedPage {
  const PageSide* side;
  const uint8_t* page;
  int64_t head, page_size;
  void* out;          // [page_size] rows of floats, or of bfloat16 where `half`
  int64_t stride;     // elements from one row to the next
  bool half;
  const void* pages;  // what `find` looks into
  const uint8_t* (*find)(const void* pages, int64_t head);  // the page that another head has in this one's place; null: nobody asks

  const uint8_t* of_head(int64_t other) const { return find(pages, other); }
  const float* table() const { return side->table ? side->table + head * side->table_stride : nullptr; }
};

PAGODA_DECLARE_BODIES(void, run_page_numbers, (const EncodedPage&))

struct PageNumbersArgs {
  const uint8_t* pages = nullptr;   // [num_pages][page_bytes]
  int64_t num_pages = 0, page_bytes = 0, page_size = 0;
  const int64_t* ids = nullptr;     // [heads][count] pages to read
  const int64_t* places = nullptr;  // [count] where their numbers go
  int64_t heads = 0, count = 0;
  bool half = false;                // out is bfloat16, else float
  struct Target {
    PageSide side;
    void* out = nullptr;                              // [heads][pages][page_size * dim], strides in elements
    int64_t out_head_stride = 0, out_page_stride = 0;
  } targets[2];
};

// Throws std::out_of_range for an id outside the pages.
void page_numbers(const PageNumbersArgs& args, int num_threads, const std::string& isa);

}  // namespace pagoda
