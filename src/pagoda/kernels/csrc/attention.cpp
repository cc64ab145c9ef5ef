#include "attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "parallel.hpp"

namespace pagoda {

namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
constexpr int64_t kParallelBytes = 256 << 10;  // K and V bytes under which waking a thread costs more than it brings

// Every table entry that the bodies will follow, checked once: they read memory unchecked.
void check(const AttentionArgs& a, int64_t seq, int64_t head) {
  const int64_t pair = seq * a.num_kv_heads + head;
  const int64_t row = a.row_of[pair], blocks = (a.kv_lens[pair] + a.page_size - 1) / a.page_size;
  if (row < 0 || row >= a.num_rows) throw std::out_of_range("row " + std::to_string(row) + " of " + std::to_string(a.num_rows));
  if (a.kv_lens[pair] < 0 || blocks > a.max_pages)
    throw std::out_of_range("length " + std::to_string(a.kv_lens[pair]) + " in a row of " + std::to_string(a.max_pages) + " pages");
  const int32_t* ids = a.rows + row * a.max_pages;
  for (int64_t j = 0; j < blocks; ++j) {
    const int64_t page = int64_t{ids[j]} + a.offset[pair];
    if (page < 0 || page >= a.num_pages)
      throw std::out_of_range("page " + std::to_string(page) + " of " + std::to_string(a.num_pages));
  }
}

struct Split {  // items first..first + count hold the parts of one query's group of heads
  int32_t seq, head;
  int64_t first, count;
};

struct Work {
  std::vector<AttentionItem> items;
  std::vector<Split> splits;
  int64_t num_partials = 0, slots = 0;
};

// A single query's slots are split at multiples of kSplitSlots (flash decoding); chunks are tiled over their queries.
Work plan(const AttentionArgs& a) {
  Work work;
  const int64_t group = a.num_q_heads / a.num_kv_heads, tile = std::max<int64_t>(1, kTileRows / group);
  for (int32_t s = 0; s < a.num_seqs; ++s) {
    const int64_t n = a.q_starts[s + 1] - a.q_starts[s];
    for (int32_t h = 0; n > 0 && h < a.num_kv_heads; ++h) {
      check(a, s, h);
      const int64_t length = a.kv_lens[s * a.num_kv_heads + h], before = length - n;
      for (int64_t q = 0; q < n; q += tile) {
        const int64_t q_end = std::min(n, q + tile);
        const int64_t end = std::max<int64_t>(0, before + q_end);
        const int64_t begin = a.window ? std::clamp<int64_t>(before + q - a.window + 1, 0, end) : 0;
        work.slots += end - begin;
        const auto item = [&](int64_t from, int64_t to, int64_t partial) {
          work.items.push_back({s, h, int32_t(q), int32_t(q_end), int32_t(from), int32_t(to), partial});
        };
        if (n > 1 || end - begin <= kSplitSlots) {
          item(begin, end, -1);
          continue;
        }
        Split split{s, h, work.num_partials, 0};
        for (int64_t from = begin; from < end; from = (from / kSplitSlots + 1) * kSplitSlots, ++split.count)
          item(from, std::min(end, (from / kSplitSlots + 1) * kSplitSlots), work.num_partials++);
        work.splits.push_back(split);
      }
    }
  }
  return work;
}

void store(const AttentionArgs& a, int64_t element, float value) {
  if (a.dtype == Dtype::f32) {
    static_cast<float*>(a.out)[element] = value;
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = std::isnan(value) ? (bits | 0x400000u) : bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
  static_cast<uint16_t*>(a.out)[element] = static_cast<uint16_t>(bits >> 16);
}

// Adds the parts of a split query in their order, each weighted by exp(its maximum - the common one).
void merge(const AttentionArgs& a, const Split& split, const float* partials) {
  const int64_t group = a.num_q_heads / a.num_kv_heads, size = partial_floats(a), dim = a.v_dim;
  const int64_t token = a.q_starts[split.seq];
  for (int64_t g = 0; g < group; ++g) {
    const int64_t q_head = split.head * group + g;
    float top = a.sinks ? a.sinks[q_head] : kMinusInf, total = 0.0f;
    for (int64_t i = 0; i < split.count; ++i) top = std::max(top, partials[(split.first + i) * size + group * dim + g]);
    if (a.sinks) total = std::exp(a.sinks[q_head] - top);
    std::vector<float> weights(split.count);
    for (int64_t i = 0; i < split.count; ++i) {
      const float* tail = partials + (split.first + i) * size + group * dim;
      weights[i] = tail[g] == kMinusInf ? 0.0f : std::exp(tail[g] - top);
      total += weights[i] * tail[group + g];
    }
    for (int64_t d = 0; d < dim; ++d) {
      float sum = 0.0f;
      for (int64_t i = 0; i < split.count; ++i) sum += weights[i] * partials[(split.first + i) * size + g * dim + d];
      store(a, (token * a.num_q_heads + q_head) * dim + d, total > 0.0f ? sum / total : 0.0f);
    }
  }
}

}  // namespace

void paged_attention(const AttentionArgs& a, int num_threads, const std::string& isa) {
  const AttentionBody body = PAGODA_BODY(isa, run_item);
  if (a.num_tokens < a.q_starts[a.num_seqs]) throw std::out_of_range("more queries in the table than tokens");
  const Work work = plan(a);
  const std::unique_ptr<float[]> partials(new float[work.num_partials * partial_floats(a)]);
  const int64_t bytes = work.slots * (a.k_dim + a.stored_v_dim) * (a.dtype == Dtype::f32 ? 4 : 2);
  if (bytes < kParallelBytes) num_threads = 1;
  parallel_for(static_cast<int64_t>(work.items.size()), num_threads,
               [&](int64_t i) { body(a, work.items[i], partials.get()); });
  for (const Split& split : work.splits) merge(a, split, partials.get());
}

}  // namespace pagoda
