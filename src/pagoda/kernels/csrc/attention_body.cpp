// One item of attention work, for one instruction set. Compiled once per instruction set (CMakeLists.txt);
// everything but the entry lives in an unnamed namespace and uses nothing of the standard library that could be shared
// between objects compiled for different machines.
//
// A tile holds R rows = queries x query heads of the group, which read the same K and V. Two layouts meet:
//
//   scores [slot][lane]     lanes are rows: a K element is broadcast against LANES queries, so no sum runs across a register
//   sums   [row][v_dim]     lanes are V's columns: a row's probability is broadcast against a V row
//
// Slots are taken kBlock at a time with a running maximum (online softmax, arXiv:1805.02867).
//
// PAGODA_ISA is the namespace (CMakeLists.txt), PAGODA_LANES the floats in a register and PAGODA_DPBF16 whether pairs of bfloat16
// have a dot product (vec.hpp).

#include "attention.hpp"
#include "vec.hpp"

// The two inner loops keep their sums in registers only when compiled alone: inlined, g++ 12 spilled half of them
// (a chunk of 1024: 26.0 ms on one Zen 4 core, 23.9 so).
#define PAGODA_OWN_REGISTERS __attribute__((noinline))

namespace pagoda {
namespace {

constexpr int kBlock = 128;  // slots a round: scores of 16 rows are 8 KiB, K and V of 64 columns in bf16 32 KiB

// ---- scratch: one buffer a thread, kept ------------------------------------------------------------------------------

struct Scratch {
  float* data = nullptr;
  int64_t size = 0;
  ~Scratch() { __builtin_free(data); }
  float* need(int64_t floats) {
    if (floats > size) {
      __builtin_free(data);
      data = static_cast<float*>(__builtin_malloc(static_cast<size_t>(floats) * sizeof(float)));
      if (data == nullptr) __builtin_trap();
      size = floats;
    }
    return data;
  }
};

// ---- K: scores[slot][lane] += sum over d of query[lane][d] * key[slot][d] ----------------------------------------------

// Queries transposed: [d][lane] floats, or for the dot product of bfloat16 pairs [d / 2][lane] pairs.
template <typename T>
struct Keys {
  static void transpose(const T* const* query, int rows, int64_t dim, float* out) {
    for (int64_t d = 0; d < dim; ++d)
      for (int lane = 0; lane < kLanes; ++lane) out[d * kLanes + lane] = lane < rows ? widen(query[lane][d]) : 0.0f;
  }

  template <int kSlots>
  PAGODA_OWN_REGISTERS static void scores(const float* query, const T* key, int64_t dim, float* out) {
    Vec sum[kSlots];
    for (int j = 0; j < kSlots; ++j) sum[j] = Vec{};
    for (int64_t d = 0; d < dim; ++d) {
      const Vec q = load(query + d * kLanes);
      for (int j = 0; j < kSlots; ++j) sum[j] += q * widen(key[j * dim + d]);
    }
    for (int j = 0; j < kSlots; ++j) store(out + j * kLanes, sum[j]);
  }
};

#if PAGODA_DPBF16
template <>
struct Keys<uint16_t> {
  static void transpose(const uint16_t* const* query, int rows, int64_t dim, float* out) {
    for (int64_t d = 0; d < dim; d += 2)
      for (int lane = 0; lane < kLanes; ++lane) {
        uint32_t pair = 0;
        if (lane < rows) memcpy(&pair, query[lane] + d, 4);
        memcpy(out + (d / 2) * kLanes + lane, &pair, 4);
      }
  }

  template <int kSlots>
  PAGODA_OWN_REGISTERS static void scores(const float* query, const uint16_t* key, int64_t dim, float* out) {
    __m512 sum[kSlots];
    for (int j = 0; j < kSlots; ++j) sum[j] = _mm512_setzero_ps();
    for (int64_t d = 0; d < dim; d += 2) {
      const __m512bh q = (__m512bh)_mm512_loadu_ps(query + (d / 2) * kLanes);
      for (int j = 0; j < kSlots; ++j) {
        int32_t pair;
        memcpy(&pair, key + j * dim + d, 4);
        sum[j] = _mm512_dpbf16_ps(sum[j], q, (__m512bh)_mm512_set1_epi32(pair));
      }
    }
    for (int j = 0; j < kSlots; ++j) _mm512_storeu_ps(out + j * kLanes, sum[j]);
  }
};
#endif

// ---- V: sums[row][column] += probability[slot][row] * value[slot][column] -----------------------------------------------

template <int kRows, int kVectors, typename T>
PAGODA_OWN_REGISTERS void add_values(const float* probs, const T* value, int64_t stride, int slots, float* sums, int64_t sum_stride) {
  Vec sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kVectors; ++c) sum[r][c] = load(sums + r * sum_stride + c * kLanes);
  for (int j = 0; j < slots; ++j) {
    Vec v[kVectors];
    for (int c = 0; c < kVectors; ++c) v[c] = load(value + j * stride + c * kLanes);
    for (int r = 0; r < kRows; ++r)
      for (int c = 0; c < kVectors; ++c) sum[r][c] += v[c] * probs[j * kLanes + r];
  }
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kVectors; ++c) store(sums + r * sum_stride + c * kLanes, sum[r][c]);
}

// As many rows and columns at once as registers hold: 6 x 4 sums of AVX-512's 32, else 4 x 2 of 16.
constexpr int kRowsAtOnce = kLanes == 16 ? 6 : 4;
constexpr int kVectorsAtOnce = kLanes == 16 ? 4 : 2;

template <int kVectors, typename T>
void add_columns(const float* probs, const T* value, int64_t stride, int slots, int rows, float* sums, int64_t sum_stride) {
  for (int blocks = (rows + kRowsAtOnce - 1) / kRowsAtOnce; blocks > 0; --blocks) {
    const int here = (rows + blocks - 1) / blocks;  // even shares: 7 rows are 4 + 3, not 6 + 1
    switch (here) {
      case 6: add_values<kRowsAtOnce, kVectors>(probs, value, stride, slots, sums, sum_stride); break;
      case 5: add_values<kRowsAtOnce - 1, kVectors>(probs, value, stride, slots, sums, sum_stride); break;
      case 4: add_values<4, kVectors>(probs, value, stride, slots, sums, sum_stride); break;
      case 3: add_values<3, kVectors>(probs, value, stride, slots, sums, sum_stride); break;
      case 2: add_values<2, kVectors>(probs, value, stride, slots, sums, sum_stride); break;
      default: add_values<1, kVectors>(probs, value, stride, slots, sums, sum_stride);
    }
    probs += here, sums += here * sum_stride, rows -= here;
  }
}

template <typename T>
void add_rows(const float* probs, const T* value, int64_t stride, int slots, int rows, int64_t columns, float* sums) {
  int64_t c = 0;
  for (; c + kVectorsAtOnce * kLanes <= columns; c += kVectorsAtOnce * kLanes)
    add_columns<kVectorsAtOnce>(probs, value + c, stride, slots, rows, sums + c, columns);
  for (; c < columns; c += kLanes) add_columns<1>(probs, value + c, stride, slots, rows, sums + c, columns);
}

// ---- one item ---------------------------------------------------------------------------------------------------------

template <typename T>
struct Tile {
  const AttentionArgs& a;
  const AttentionItem& item;
  int group, rows, vectors;          // vectors: registers of LANES rows
  int64_t before;                    // slots before the chunk
  const int32_t* page_ids;
  int32_t page_offset;
  float *queries, *scores, *sums, *tops, *totals, *first, *last, *slopes;

  Tile(const AttentionArgs& args, const AttentionItem& it, Scratch& scratch) : a(args), item(it) {
    const int64_t pair = int64_t{it.seq} * a.num_kv_heads + it.head;
    group = int(a.num_q_heads / a.num_kv_heads);
    rows = group * (it.q_end - it.q_begin);
    vectors = (rows + kLanes - 1) / kLanes;
    before = a.kv_lens[pair] - (a.q_starts[it.seq + 1] - a.q_starts[it.seq]);
    page_ids = a.rows + a.row_of[pair] * a.max_pages;
    page_offset = a.offset[pair];
    const int64_t lanes = int64_t{vectors} * kLanes;
    float* at = scratch.need(lanes * (a.k_dim + kBlock + a.v_dim + 5));
    auto take = [&](int64_t floats) { float* p = at; at += floats; return p; };
    queries = take(lanes * a.k_dim), scores = take(lanes * kBlock), sums = take(lanes * a.v_dim);
    tops = take(lanes), totals = take(lanes), first = take(lanes), last = take(lanes), slopes = take(lanes);
  }

  int64_t token(int row) const { return a.q_starts[item.seq] + item.q_begin + row / group; }
  int64_t q_head(int row) const { return int64_t{item.head} * group + row % group; }

  void prepare() {
    const T* base = static_cast<const T*>(a.q);
    for (int v = 0; v < vectors; ++v) {
      const T* query[kLanes];
      const int here = rows - v * kLanes < kLanes ? rows - v * kLanes : kLanes;
      for (int i = 0; i < here; ++i) {
        const int row = v * kLanes + i;
        query[i] = base + token(row) * a.q_token_stride + q_head(row) * a.q_head_stride;
      }
      Keys<T>::transpose(query, here, a.k_dim, queries + int64_t{v} * a.k_dim * kLanes);
    }
    for (int row = 0; row < vectors * kLanes; ++row) {
      const int64_t own = row < rows ? before + item.q_begin + row / group : -1;  // the query's own slot
      last[row] = float(own);
      first[row] = a.window ? float(own - a.window + 1) : 0.0f;
      slopes[row] = a.slopes && row < rows ? a.slopes[q_head(row)] : 0.0f;
      tops[row] = -kInf;
      totals[row] = 0.0f;
    }
    memset(sums, 0, sizeof(float) * rows * a.v_dim);
  }

  const T* page(int64_t block) const {
    const int64_t elems = a.page_size * (a.k_dim + a.stored_v_dim);
    return static_cast<const T*>(a.pages) + (int64_t{page_ids[block]} + page_offset) * elems;
  }

  // Calls act(page, slot in the page, count, slot in the block) for the runs of slots that lie in one page.
  template <typename Act>
  void pieces(int64_t begin, int64_t end, Act act) const {
    for (int64_t slot = begin; slot < end;) {
      const int64_t inside = slot % a.page_size;
      int64_t count = a.page_size - inside;
      if (count > end - slot) count = end - slot;
      act(page(slot / a.page_size), inside, int(count), int(slot - begin));
      slot += count;
    }
  }

  void block(int64_t begin, int64_t end) {
    const int slots = int(end - begin);
    pieces(begin, end, [&](const T* page, int64_t inside, int count, int at) {
      for (int v = 0; v < vectors; ++v) {
        const float* query = queries + int64_t{v} * a.k_dim * kLanes;
        const T* key = page + inside * a.k_dim;
        float* out = scores + (int64_t{v} * kBlock + at) * kLanes;
        int j = 0;
        if (kLanes == 16)  // sixteen sums and more stay in AVX-512's registers
          for (; j + 16 <= count; j += 16)
            Keys<T>::template scores<16>(query, key + j * a.k_dim, a.k_dim, out + j * kLanes);
        for (; j + 8 <= count; j += 8) Keys<T>::template scores<8>(query, key + j * a.k_dim, a.k_dim, out + j * kLanes);
        for (; j < count; ++j) Keys<T>::template scores<1>(query, key + j * a.k_dim, a.k_dim, out + j * kLanes);
      }
    });
    // All rows see all slots of most blocks; only then is the mask left out.
    const int64_t own = before + item.q_begin, end_own = before + item.q_end - 1;
    const bool masked = end - 1 > own || (a.window && begin < end_own - a.window + 1);
    for (int v = 0; v < vectors; ++v) softmax(v, begin, slots, masked);
    pieces(begin, end, [&](const T* page, int64_t inside, int count, int at) {
      const int64_t stride = a.stored_v_dim ? a.stored_v_dim : a.k_dim;
      const T* value = a.stored_v_dim ? page + a.page_size * a.k_dim + inside * stride : page + inside * stride;
      for (int v = 0; v < vectors; ++v) {
        const int here = rows - v * kLanes < kLanes ? rows - v * kLanes : kLanes;
        const float* probs = scores + (int64_t{v} * kBlock + at) * kLanes;
        add_rows(probs, value, stride, count, here, a.v_dim, sums + int64_t{v} * kLanes * a.v_dim);
      }
    });
  }

  // Scores of one register of rows become weights; the running maximum moves, and older sums with it.
  void softmax(int v, int64_t begin, int slots, bool masked) {
    float* s = scores + int64_t{v} * kBlock * kLanes;
    const int at = v * kLanes;
    const Vec low = load(first + at), high = load(last + at), slope = load(slopes + at);
    Vec top = load(tops + at);
    const Vec old = top;
    for (int j = 0; j < slots; ++j) {
      Vec x = load(s + j * kLanes) * a.scale;
      const Vec slot = splat(float(begin + j));
      if (a.soft_cap > 0.0f) x = a.soft_cap * tanh_of(x / a.soft_cap);
      if (a.slopes) x += slope * (slot - high);
      if (masked) x = select((slot <= high) & (slot >= low), x, splat(-kInf));
      top = maximum(x, top);
      store(s + j * kLanes, x);
    }
    const Vec shift = select(top == splat(-kInf), Vec{}, top);  // a row that saw nothing yet: weights 0, not nan
    const Vec factor = exponential(old - shift);
    Vec total = load(totals + at) * factor;
    for (int j = 0; j < slots; ++j) {
      const Vec p = exponential(load(s + j * kLanes) - shift);
      total += p;
      store(s + j * kLanes, p);
    }
    store(totals + at, total);
    store(tops + at, top);
    float factors[kLanes];
    store(factors, factor);
    for (int i = 0; i < kLanes && at + i < rows; ++i) {
      if (factors[i] == 1.0f) continue;
      float* row = sums + int64_t{at + i} * a.v_dim;
      for (int64_t d = 0; d < a.v_dim; ++d) row[d] *= factors[i];
    }
  }

  void write_partial(float* partials) const {
    float* out = partials + item.partial * partial_floats(a);
    memcpy(out, sums, sizeof(float) * rows * a.v_dim);
    memcpy(out + rows * a.v_dim, tops, sizeof(float) * rows);
    memcpy(out + rows * (a.v_dim + 1), totals, sizeof(float) * rows);
  }

  void write_result() {
    if (a.sinks) {  // one more logit in the denominator
      for (int row = 0; row < rows; ++row) {
        const float sink = a.sinks[q_head(row)], top = tops[row] > sink ? tops[row] : sink;
        float pair[kLanes] = {tops[row] - top, sink - top};
        store(pair, exponential(load(pair)));
        totals[row] = totals[row] * pair[0] + pair[1];
        for (int64_t d = 0; d < a.v_dim; ++d) sums[row * a.v_dim + d] *= pair[0];
      }
    }
    for (int row = 0; row < rows; ++row) {
      T* out = static_cast<T*>(a.out) + (token(row) * a.num_q_heads + q_head(row)) * a.v_dim;
      const float scale = totals[row] > 0.0f ? 1.0f / totals[row] : 0.0f;
      for (int64_t d = 0; d < a.v_dim; ++d) narrow(sums[row * a.v_dim + d] * scale, out + d);
    }
  }

  void run(float* partials) {
    prepare();
    for (int64_t at = item.slot_begin; at < item.slot_end;) {
      int64_t end = (at / kBlock + 1) * kBlock;
      if (end > item.slot_end) end = item.slot_end;
      block(at, end);
      at = end;
    }
    if (item.partial >= 0) write_partial(partials);
    else write_result();
  }
};

thread_local Scratch scratch;

}  // namespace

namespace PAGODA_ISA {

void run_item(const AttentionArgs& args, const AttentionItem& item, float* partials) {
  if (args.dtype == Dtype::f32) Tile<float>(args, item, scratch).run(partials);
  else Tile<uint16_t>(args, item, scratch).run(partials);
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
