// Copies of chosen pages whose keys have other positions than they were written with (LongCache, arXiv:2407.15176).
#pragma once

#include <cstdint>

#include "dtype.hpp"
#include "isa.hpp"
#include "page_shape.hpp"

namespace pagoda {

// One page: `from` as numbers in `to`, whose shape is `numbers` (float32 or bfloat16); channel i of a key turns with channel
// i + k_dim / 2 by `turn`, [k_dim / 2] cosines, then sines. `room`: floats for the longest row.
struct MoveArgs {
  PageShape shape, numbers;
  const char* from = nullptr;
  char* to = nullptr;
  const char* soon = nullptr;  // the page that will be moved next, which is fetched meanwhile
  const float* turn = nullptr;
  float* room = nullptr;
};

PAGODA_DECLARE_BODIES(void, move_page, (const MoveArgs&))

}  // namespace pagoda
