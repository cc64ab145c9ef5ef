// What slots receive, for one instruction set; see window_sums.hpp.
#include <algorithm>

#include "attention_pack.hpp"
#include "attention_rows.hpp"
#include "fetch.hpp"
#include "vec.hpp"
#include "window_sums.hpp"

namespace pagoda {
namespace {

constexpr float kMean = 0.99999f;  // what is equal but for rounding counts as the mean
// Queries and registers of slots at once: as many sums as hide each other's latency where there are 32 registers, and as 16 hold. Two
// registers of slots, since an act of a small budget looks at 32.
constexpr int kQueries = kLanes == 16 ? 8 : 4, kVectors = 2;

static_assert(kWindowSlots % kLanes == 0 && kWindowQueries % kQueries == 0);

const char* page_of(const WindowHead& a, int64_t column) { return a.pages + a.page_ids[column] * a.shape->page_bytes; }

// Products of kCount queries with kWide registers of slots from `slot` on.
template <int kCount, int kWide>
void multiply(const WindowHead& a, const float* const* queries, int64_t slot) {
  Vec sums[kCount][kWide];
  for (int i = 0; i < kCount; ++i)
    for (int v = 0; v < kWide; ++v) sums[i][v] = Vec{};
  for (int64_t d = 0; d < a.dim; ++d) {
    const float* const keys = a.keys + d * a.room + slot;
    for (int i = 0; i < kCount; ++i) {
      const Vec query = splat(queries[i][d]);
      for (int v = 0; v < kWide; ++v) sums[i][v] = fused(query, load(keys + v * kLanes), sums[i][v]);
    }
  }
  for (int i = 0; i < kCount; ++i)
    for (int v = 0; v < kWide; ++v) store(a.scores + i * a.room + slot + v * kLanes, sums[i][v]);
}

template <int kCount>
void products(const WindowHead& a, const float* const* queries) {
  int64_t slot = 0;
  for (; slot + kVectors * kLanes <= a.room; slot += kVectors * kLanes) multiply<kCount, kVectors>(a, queries, slot);
  for (; slot < a.room; slot += kLanes) multiply<kCount, 1>(a, queries, slot);
}

IntVec positions_at(const WindowHead& a, int64_t slot) {
  IntVec found;
  memcpy(&found, a.positions + slot, sizeof found);
  return found;
}

float highest(Vec x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(x);
#else
  float lanes[kLanes], most = -kInf;
  store(lanes, x);
  for (float lane : lanes) most = lane > most ? lane : most;
  return most;
#endif
}

// Scores of `count` queries, the first of query head `of_group`, become probabilities, which their slots receive. A stride at a time for all of
// them: what one waits for, sums across a register and quotients, hides behind the others'.
void give(const WindowHead& a, int count, const int32_t* positions, int64_t of_group) {
  float tops[kQueries], shares[kQueries], means[kQueries];
  for (int j = 0; j < count; ++j) {
    float* const scores = a.scores + j * a.room;
    const IntVec newest = IntVec{} + positions[j];
    Vec most = splat(-kInf);
    for (int64_t i = 0; i < a.room; i += kLanes) {
      Vec x = load(scores + i) * a.scale;
      if (a.soft_cap > 0.0f) x = tanh_of(x / a.soft_cap) * a.soft_cap;
      x = select(positions_at(a, i) > newest, splat(-kInf), x);
      store(scores + i, x);
      most = maximum(most, x);
    }
    const float top = highest(most);
    tops[j] = top > -kInf ? top : 0.0f;  // it sees none of them
  }
  for (int j = 0; j < count; ++j) {
    float* const scores = a.scores + j * a.room;
    const Vec top = splat(tops[j]);
    Vec sum{}, seen{};
    for (int64_t i = 0; i < a.room; i += kLanes) {
      const Vec p = exponential(load(scores + i) - top);
      store(scores + i, p);
      sum += p, seen += select(p > Vec{}, splat(1.0f), Vec{});
    }
    shares[j] = total_of(sum), means[j] = total_of(seen);
  }
  for (int j = 0; j < count; ++j) {
    const bool sees = means[j] > 0.0f;
    shares[j] = sees ? 1.0f / shares[j] : 0.0f, means[j] = sees ? kMean / means[j] : kInf;
  }
  for (int64_t i = 0; i < a.room; i += kLanes) {
    Vec received = load(a.received + i), wanted = load(a.wanted + i), largest = load(a.largest + i), given = load(a.given + i);
    int64_t head = of_group;
    for (int j = 0; j < count; ++j) {
      const Vec p = load(a.scores + j * a.room + i) * shares[j];
      received += p, given += p, wanted += select(p >= splat(means[j]), splat(1.0f), Vec{});
      if (++head == a.group) largest = maximum(largest, given), given = Vec{}, head = 0;
    }
    store(a.received + i, received), store(a.wanted + i, wanted), store(a.largest + i, largest), store(a.given + i, given);
  }
}

// A register of slots at a time. What is behind the last is anything finite: nobody sees it.
void turn_keys(const WindowHead& a) {
  const int64_t size = a.shape->page_size;
  const Plane &plane = a.shape->k, &scales = a.shape->k_scales;
  const char* rows[kLanes];
  for (int i = 0; i < kLanes; ++i) rows[i] = reinterpret_cast<const char*>(a.rows + i * a.dim);
  std::fill_n(a.rows, kLanes * a.dim, 0.0f);
  for (int64_t first = 0; first < a.room; first += kLanes) {
    for (int64_t slot = first; slot < std::min(a.slots, first + kLanes); ++slot) {
      const int64_t inside = slot % size, next = slot / size + 1;
      if (inside == 0 && next * size < a.slots) fetch(page_of(a, next) + plane.at, size * plane.bytes);
      const char* const page = page_of(a, slot / size);
      read_row(a.shape->store, page + plane.at + inside * plane.bytes, page + scales.at + inside * scales.bytes, a.dim,
               a.rows + (slot - first) * a.dim);
    }
    pack_keys(rows, a.dim, a.keys + first, a.room);
  }
}

}  // namespace

namespace PAGODA_ISA {

void add_window(const WindowHead& a) {
  turn_keys(a);
  const int64_t count = a.window * a.group;
  int64_t query = 0, of_group = 0;
  for (int64_t i = 0; i < count; i += kQueries) {
    const float* queries[kQueries];
    int32_t positions[kQueries];
    const int here = int(count - i < kQueries ? count - i : kQueries);
    const int64_t first_head = of_group;
    for (int j = 0; j < here; ++j) {
      const int64_t bytes = a.dim * size_of(a.dtype), at = (a.first_place + query) % a.places * a.query_stride + of_group * bytes;
      widen_row(Store(a.dtype), a.queries + at, nullptr, a.dim, a.wide + j * a.dim);
      queries[j] = a.wide + j * a.dim, positions[j] = int32_t(a.first_position + query);
      if (a.next_queries) fetch_second(a.next_queries + at, bytes);
      if (++of_group == a.group) of_group = 0, ++query;
    }
    if (here == kQueries) products<kQueries>(a, queries);
    else
      for (int j = 0; j < here; ++j) {
        WindowHead one = a;
        one.scores = a.scores + j * a.room;
        products<1>(one, queries + j);
      }
    give(a, here, positions, first_head);
  }
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
