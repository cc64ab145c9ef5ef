// Rows of a weight as checkpoints store them, into the panels that packed.hpp draws: a panel is sixteen rows of 32-bit
// blocks, transposed.
#pragma once

#include <cstdint>

namespace pagoda {

// What a 32-bit block of a stored row holds, and what happens to its fields on the way.
enum class Stored {
  f32 = 0,   // one float: as it is
  bf16 = 1,  // two bfloat16: as they are
  int8 = 2,  // four signed bytes: + 128, the middle two change places
  int4 = 3,  // eight unsigned nibbles, the first lowest: even ones to the lower half of the block, odd ones to the upper
  int5 = 4,  // six codes in the order of panels: as they are
  ternary = 5,  // sixteen codes of two bits, the first lowest: even ones to the lower half, odd ones to the upper
  f16 = 6,   // two halves: as they are
  fp8 = 7,   // four bytes of e4m3: the middle two change places
  nf4 = 8,   // as int4
};

struct LayOutArgs {
  const uint8_t* rows;  // [num_rows][row_bytes], contiguous
  int64_t num_rows, row_bytes;
  uint8_t* panels;  // [ceil(num_rows / 16)][ceil(row_bytes / 4)][16][4 bytes]
  Stored stored;
  int num_threads;
};

// False, with the panels written all the same, when a number is infinite or none. Threads write pieces of their own,
// the size of a huge page, so that memory which was never touched is made by all of them at once.
bool lay_out(const LayOutArgs& a);

}  // namespace pagoda
