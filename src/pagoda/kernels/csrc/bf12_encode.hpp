// bfloat16 into panels of bf12 (kernels/bf12.py).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "isa.hpp"

namespace pagoda {

// lines [ceil(inputs / 2)][32] of a panel of bf16 into chunks of four [chunks][192]. Appends the panel's
// exceptions, in order; returns its window.
PAGODA_DECLARE_BODIES(int32_t, encode_panel, (const uint16_t* lines, int64_t inputs, uint8_t* to, std::vector<uint32_t>& exceptions))

struct EncodeArgs {
  const uint8_t* rows;  // bfloat16 [num_rows][row_bytes / 2], contiguous
  int64_t num_rows, row_bytes;
  uint8_t* panels;  // [ceil(num_rows / 16)][chunks][192]
  int32_t* windows;  // [panels]
  int64_t* counts;   // [panels], of exceptions
  int num_threads;
};

// The exceptions of all panels, one after the other. `finite`: false where a number is infinite or none.
std::vector<uint32_t> encode_rows(const EncodeArgs& args, bool& finite, const std::string& isa);

}  // namespace pagoda
