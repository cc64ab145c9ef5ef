// Where the newest queries of some of a step's sequences are remembered, for KV policies that look at them later:
//
//   ring [layers][width][query heads * dim], place (first + i) % width for the i-th of the `num` newest
#pragma once

#include <cstdint>

namespace pagoda {

struct QueryRings {
  const int64_t* rings = nullptr;  // [S] addresses, 0 where nobody asks; null: nobody does
  const int64_t *widths = nullptr, *firsts = nullptr, *nums = nullptr;  // [S]
};

struct QueryRows {  // of a layer: one a token, `bytes` of it queries
  const char* at = nullptr;
  int64_t stride = 0, bytes = 0;
};

// Copies those of one layer. q_starts [S + 1]: first token of each sequence; its last tokens are the newest. Throws
// std::invalid_argument for more of them than a sequence has tokens, or a ring places.
void note_queries(const QueryRings& to, int64_t layer, int64_t num_seqs, const int32_t* q_starts, const QueryRows& queries, int num_threads);

}  // namespace pagoda
