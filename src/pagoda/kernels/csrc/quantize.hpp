// Rows of plain weights to integers and scales, each value to the nearest: what weights/formats do in torch, in one pass
// and on all cores (loading a model as int4 took twelve times as long as reading it).
#pragma once

#include <cstdint>
#include <string>

#include "dtype.hpp"
#include "isa.hpp"

namespace pagoda {

struct QuantizeArgs {
  const uint8_t* rows;  // [num_rows][cols] of dtype, contiguous
  int64_t num_rows, cols;
  Dtype dtype;
  int bits;  // of a code: 8, 5 or 4
  bool floats;  // codes of 8 bits are e4m3, those of 4 numbers of nf4's levels (without zeros, of float scales)
  int64_t group;  // inputs that share a scale: whole words of codes; 0: a row shares one, codes of 8 bits
  bool wide_scales;  // float scales of groups, bfloat16 otherwise; a row's scale is always a float
  uint8_t* codes;  // 8 bits: [num_rows][cols], integers signed; 5: [num_rows][ceil(cols / 6)][4 bytes], in the order of panels;
                   // 4: [num_rows][ceil(cols / 2)], the first in the lower half
  uint8_t* scales;  // [num_rows][groups]
  uint8_t* zeros;  // [num_rows][groups], or null: symmetric, zero is the middle
  int num_threads;
};

// False, with codes of no meaning, when a value is infinite or not a number.
bool quantize_rows(const QuantizeArgs& a, const std::string& isa);

// The same of rows first to last.
PAGODA_DECLARE_BODIES(bool, quantize_some, (const QuantizeArgs& a, int64_t first, int64_t last))

}  // namespace pagoda
