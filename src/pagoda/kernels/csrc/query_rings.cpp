#include "query_rings.hpp"

#include <cstring>
#include <stdexcept>

#include "parallel.hpp"

namespace pagoda {

namespace {

constexpr int64_t kAlone = 48 << 10;  // bytes below which waking a thread costs more than it brings

}  // namespace

void note_queries(const QueryRings& to, int64_t layer, int64_t num_seqs, const int32_t* q_starts, const QueryRows& queries, int num_threads) {
  if (!to.rings) return;
  int64_t total = 0;
  for (int64_t seq = 0; seq < num_seqs; ++seq) {
    if (!to.rings[seq]) continue;
    const int64_t num = to.nums[seq], width = to.widths[seq], first = to.firsts[seq];
    if (num < 0 || num > q_starts[seq + 1] - q_starts[seq] || num > width || first < 0 || first >= width)
      throw std::invalid_argument(std::to_string(num) + " queries from place " + std::to_string(first) + " of " + std::to_string(width) +
                                  " on, of " + std::to_string(q_starts[seq + 1] - q_starts[seq]) + " tokens");
    total += num * queries.bytes;
  }
  parallel_for(num_seqs, total < kAlone ? 1 : num_threads, [&](int64_t seq) {
    if (!to.rings[seq]) return;
    const int64_t num = to.nums[seq], width = to.widths[seq];
    char* const ring = reinterpret_cast<char*>(to.rings[seq]) + layer * width * queries.bytes;
    const char* from = queries.at + (q_starts[seq + 1] - num) * queries.stride;
    for (int64_t i = 0; i < num; ++i, from += queries.stride)
      std::memcpy(ring + (to.firsts[seq] + i) % width * queries.bytes, from, queries.bytes);
  });
}

}  // namespace pagoda
