// ggml's blocks of quantized weights, opened (weights/gguf_blocks.py draws them and is the plain twin).
#pragma once

#include <cstdint>

namespace pagoda {

enum class BlockKind : int32_t { q8_0 = 0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k };

struct OpenArgs {
  const uint8_t* raw;  // blocks, one behind the other
  int64_t num_blocks;
  BlockKind kind;
  void* out;  // float, or bfloat16 rounded half to even
  bool as_bf16;
  int num_threads;
};

void open_blocks(const OpenArgs& a);

// Q4_0 as the codes of int4 in groups of 32: 16 bytes of codes a block, the first weight lowest, and a float scale.
void split_q4_0(const uint8_t* raw, int64_t num_blocks, uint8_t* codes, float* scales, int num_threads);

}  // namespace pagoda
