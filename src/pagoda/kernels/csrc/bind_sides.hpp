// How pages that were encoded whole are read, made once for all steps: keys and values of each layer, in turns.
#pragma once

#include <tuple>
#include <vector>

#include "bind.hpp"
#include "page_numbers.hpp"

namespace pagoda {

// (kind, offsets, table, stride of a head in the table, dim)
using BoundSide = std::tuple<int, std::vector<int64_t>, uintptr_t, int64_t, int64_t>;

inline PageSide side_of(const BoundSide& from) {
  PageSide side;
  const auto& [kind, offsets, table, table_stride, dim] = from;
  side.kind = CodeKind(kind), side.table = at<float>(table), side.table_stride = table_stride, side.dim = dim;
  for (size_t i = 0; i < offsets.size() && i < 5; ++i) side.at[i] = offsets[i];
  return side;
}

struct CodedSides {
  std::vector<PageSide> of;  // [L][2]
  int64_t page_bytes = 0;    // from one page to the next
};

}  // namespace pagoda
