// Paged attention over head pages, decode and prefill chunks alike. The contract is ops/attention.py's; see there.
#pragma once

#include <cstdint>
#include <string>

#include "dtype.hpp"
#include "isa.hpp"

namespace pagoda {

struct AttentionArgs {
  // Queries [T, Hq, k_dim], strides in elements, last dimension contiguous; result [T, Hq, v_dim] contiguous.
  const void* q = nullptr;
  int64_t q_token_stride = 0, q_head_stride = 0;
  void* out = nullptr;
  Dtype dtype = Dtype::f32;  // of queries, pages and result
  // Storage [num_pages, page_size * (k_dim + stored_v_dim)]; latent pages store no V (stored_v_dim 0).
  const void* pages = nullptr;
  int64_t num_pages = 0, page_size = 0, k_dim = 0, stored_v_dim = 0, v_dim = 0;
  // The layer's table, all int32.
  const int32_t* rows = nullptr;  // [R, max_pages]
  int64_t num_rows = 0, max_pages = 0;
  const int32_t* row_of = nullptr;    // [S, Hkv]
  const int32_t* offset = nullptr;    // [S, Hkv]
  const int32_t* kv_lens = nullptr;   // [S, Hkv]
  const int32_t* q_starts = nullptr;  // [S + 1]
  int64_t num_seqs = 0, num_q_heads = 0, num_kv_heads = 0, num_tokens = 0;
  // Options, as in the Python signature.
  float scale = 1.0f, soft_cap = 0.0f;
  int64_t window = 0;
  const float* sinks = nullptr;   // [Hq]
  const float* slopes = nullptr;  // [Hq]
};

// Runs on up to num_threads threads with the instruction set `isa` ("" = the best here). The result does not depend on the
// number of threads, nor a sequence's on its batch mates. Throws std::out_of_range for a bad page id or row,
// std::invalid_argument for an unknown or unusable isa.
void paged_attention(const AttentionArgs& args, int num_threads, const std::string& isa);

// ---- between the driver (attention.cpp) and the bodies (attention_body.hpp, once per instruction set) ----------------

// Queries q_begin..q_end of one (sequence, kv-head), over slots slot_begin..slot_end of what they see.
struct AttentionItem {
  int32_t seq, head;
  int32_t q_begin, q_end;
  int32_t slot_begin, slot_end;
  int64_t partial;  // where its partial result goes (an index), or -1: it is the whole, write the result itself
};

// Slots that one item takes when a long context is split; a constant, so that results do not depend on the machine.
constexpr int64_t kSplitSlots = 1024;
// Rows (queries times query heads of the group) that one item takes.
constexpr int64_t kTileRows = 32;

// A partial result: [rows][v_dim] unnormalized sums, then [rows] maxima, then [rows] denominators.
inline int64_t partial_floats(const AttentionArgs& a) {
  return (a.num_q_heads / a.num_kv_heads) * (a.v_dim + 2);
}

using AttentionBody = void (*)(const AttentionArgs&, const AttentionItem&, float* partials);
PAGODA_DECLARE_BODIES(void, run_item, (const AttentionArgs&, const AttentionItem&, float* partials))

}  // namespace pagoda
