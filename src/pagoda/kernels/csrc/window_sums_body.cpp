// What slots receive, for one instruction set; see window_sums.hpp.
#include "vec.hpp"
#include "window_sums.hpp"

namespace pagoda {
namespace {

constexpr float kMean = 0.99999f;  // what is equal but for rounding counts as the mean
constexpr int kVectors = 4;        // of slots, at once with four queries: sixteen sums

static_assert(kWindowSlots % kLanes == 0);

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
      for (int v = 0; v < kWide; ++v) sums[i][v] += query * load(keys + v * kLanes);
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
  float lanes[kLanes], most = -kInf;
  store(lanes, x);
  for (float lane : lanes) most = lane > most ? lane : most;
  return most;
}

// A query's scores become probabilities, which its slots receive.
void give(const WindowHead& a, float* scores, int64_t position) {
  const IntVec newest = IntVec{} + int32_t(position);
  Vec most = splat(-kInf);
  for (int64_t i = 0; i < a.room; i += kLanes) {
    Vec x = load(scores + i) * a.scale;
    if (a.soft_cap > 0.0f) x = tanh_of(x / a.soft_cap) * a.soft_cap;
    x = select(positions_at(a, i) > newest, splat(-kInf), x);
    store(scores + i, x);
    most = maximum(most, x);
  }
  const float top = highest(most);
  if (top == -kInf) return;  // it sees none of them
  Vec sum{}, seen{};
  for (int64_t i = 0; i < a.room; i += kLanes) {
    const Vec p = exponential(load(scores + i) - splat(top));
    store(scores + i, p);
    sum += p, seen += select(p > Vec{}, splat(1.0f), Vec{});
  }
  const float share = 1.0f / total_of(sum), mean = kMean / total_of(seen);
  for (int64_t i = 0; i < a.room; i += kLanes) {
    const Vec p = load(scores + i) * share;
    store(a.received + i, load(a.received + i) + p);
    store(a.wanted + i, load(a.wanted + i) + select(p >= splat(mean), splat(1.0f), Vec{}));
  }
}

}  // namespace

namespace PAGODA_ISA {

void add_window(const WindowHead& a) {
  const int64_t count = a.window * a.group;
  for (int64_t i = 0; i < count; i += kWindowQueries) {
    const float* queries[kWindowQueries];
    const int here = int(count - i < kWindowQueries ? count - i : kWindowQueries);
    for (int j = 0; j < here; ++j) queries[j] = a.queries + (i + j) / a.group * a.query_stride + (i + j) % a.group * a.dim;
    if (here == kWindowQueries) products<kWindowQueries>(a, queries);
    else
      for (int j = 0; j < here; ++j) {
        WindowHead one = a;
        one.scores = a.scores + j * a.room;
        products<1>(one, queries + j);
      }
    for (int j = 0; j < here; ++j) give(a, a.scores + j * a.room, a.first_position + (i + j) / a.group);
  }
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
