// Matrix product for a handful of tokens in bfloat16, where reading the weights once is all that matters.
#pragma once

#include <cstdint>
#include <string>

#include "isa.hpp"

namespace pagoda {

constexpr int kMaxLinearTokens = 8;

struct LinearArgs {
  const uint16_t* x;       // [tokens, inputs] contiguous
  const uint16_t* weight;  // [outputs, inputs], rows weight_stride apart
  const uint16_t* bias;    // [outputs] or null
  uint16_t* out;           // [tokens, outputs] contiguous
  int64_t tokens, inputs, outputs, weight_stride;
};

// out = x @ weight.T + bias; sums in float32, rounded once. The bits of a result depend neither on the number of threads nor
// on the other tokens. Throws std::invalid_argument for more than kMaxLinearTokens tokens or an unusable isa.
void linear(const LinearArgs& args, int num_threads, const std::string& isa);

using LinearBody = void (*)(const LinearArgs&, int64_t first_output, int64_t end_output);
PAGODA_DECLARE_BODIES(void, linear_rows, (const LinearArgs&, int64_t first_output, int64_t end_output))

}  // namespace pagoda
