#include "routing.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "parallel.hpp"
#include "small_floats.hpp"

namespace pagoda {

namespace {

constexpr int64_t kParallelBytes = 256 << 10;  // of the router, under which waking a thread costs more than it brings
constexpr int64_t kTokens = 16;                // of one item: their rows stay in the first caches while the router's pass by
constexpr int64_t kExperts = 8;                // an item's experts are a multiple of these
constexpr int64_t kChosen = 16;                // tokens whose experts one item chooses

struct Ranked {
  float value;
  int64_t place;
};

bool before(const Ranked& a, const Ranked& b) { return (std::isnan(a.value) && !std::isnan(b.value)) || a.value > b.value; }

// The k largest first, falling. Which of equals are taken is what torch's topk takes: these are its steps (ATen's TopKImpl.h), and bfloat16 logits
// are often equal.
void rank(const float* values, int64_t count, int64_t k, std::vector<Ranked>& room) {
  room.resize(count);
  for (int64_t i = 0; i < count; ++i) room[i] = {values[i], i};
  if (k * 64 <= count) {
    std::partial_sort(room.begin(), room.begin() + k, room.end(), before);
    return;
  }
  std::nth_element(room.begin(), room.begin() + k - 1, room.end(), before);
  std::sort(room.begin(), room.begin() + k - 1, before);
}

// What one thread needs to choose, kept.
struct Choosing {
  std::vector<Ranked> ranked;
  std::vector<float> scores, groups;
  std::vector<int64_t> open;
};

float rounded(float x, Dtype dtype) { return dtype == Dtype::f32 ? x : bf16_value(bf16_bits(x)); }

void take_ranked(const std::vector<Ranked>& ranked, const RouterRule& rule, int64_t* ids, float* weights) {
  for (int64_t i = 0; i < rule.top_k; ++i) ids[i] = ranked[i].place, weights[i] = ranked[i].value;
}

float sum_of(const float* weights, int64_t count) {
  float sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) sum += weights[i];
  return sum;
}

// DeepSeek-V3: the correction steers the choice, never the weights; experts outside the best groups cannot be chosen.
void choose_grouped(const RouterRule& rule, float* logits, const float* correction, int64_t* ids, float* weights, Choosing& room,
                    decltype(&base::sigmoid_row) sigmoid) {
  const int64_t count = rule.experts, size = count / rule.groups;
  room.scores.resize(count), room.groups.resize(rule.groups);
  float* const scores = room.scores.data();
  sigmoid(logits, scores, count);
  for (int64_t e = 0; e < count; ++e) logits[e] = correction ? scores[e] + correction[e] : scores[e];
  for (int64_t g = 0; g < rule.groups; ++g) {
    rank(logits + g * size, size, std::min<int64_t>(2, size), room.ranked);
    room.groups[g] = size > 1 ? room.ranked[0].value + room.ranked[1].value : room.ranked[0].value;
  }
  rank(room.groups.data(), rule.groups, rule.topk_group, room.ranked);
  room.open.assign(rule.groups, 0);
  for (int64_t i = 0; i < rule.topk_group; ++i) room.open[room.ranked[i].place] = 1;
  for (int64_t e = 0; e < count; ++e)
    if (!room.open[e / size]) logits[e] = -std::numeric_limits<float>::infinity();
  rank(logits, count, rule.top_k, room.ranked);
  take_ranked(room.ranked, rule, ids, weights);
  for (int64_t i = 0; i < rule.top_k; ++i) weights[i] = scores[ids[i]];
  const float sum = rule.normalize ? sum_of(weights, rule.top_k) + 1e-20f : 1.0f;
  for (int64_t i = 0; i < rule.top_k; ++i) weights[i] = (rule.normalize ? weights[i] / sum : weights[i]) * rule.scaling;
}

}  // namespace

void router_logits(const RouterArgs& a, int num_threads, const std::string& isa) {
  const auto body = PAGODA_BODY(isa, router_rows);
  const int64_t bytes = a.experts * a.hidden * size_of(a.dtype), blocks = (a.experts + kExperts - 1) / kExperts;
  if (bytes * std::max<int64_t>(1, a.tokens / 4) < kParallelBytes) num_threads = 1;
  const int64_t token_parts = (a.tokens + kTokens - 1) / kTokens;
  const int64_t parts = token_parts >= num_threads ? 1 : std::min<int64_t>(blocks, num_threads);
  parallel_for(token_parts * parts, num_threads, [&](int64_t i) {
    const int64_t token = i / parts * kTokens, first = i % parts * blocks / parts * kExperts, end = (i % parts + 1) * blocks / parts * kExperts;
    body(a, token, std::min(a.tokens, token + kTokens), first, std::min(a.experts, end));
  });
}

void route(const RouterRule& rule, float* logits, const float* correction, int64_t tokens, Dtype dtype, int64_t* all_ids, float* all_weights,
           int num_threads, const std::string& isa) {
  const auto softmax = PAGODA_BODY(isa, softmax_row);
  const auto sigmoid = PAGODA_BODY(isa, sigmoid_row);
  parallel_for((tokens + kChosen - 1) / kChosen, num_threads, [&](int64_t item) {
    static thread_local Choosing room;
    for (int64_t t = item * kChosen; t < std::min(tokens, (item + 1) * kChosen); ++t) {
      float *const row = logits + t * rule.experts, *const weights = all_weights + t * rule.top_k;
      int64_t* const ids = all_ids + t * rule.top_k;
      if (rule.kind == Router::sigmoid) {
        choose_grouped(rule, row, correction, ids, weights, room, sigmoid);
        continue;
      }
      if (rule.kind == Router::softmax) softmax(row, rule.experts);
      rank(row, rule.experts, rule.top_k, room.ranked);
      take_ranked(room.ranked, rule, ids, weights);
      if (rule.kind == Router::topk_softmax) softmax(weights, rule.top_k);
      const float sum = rule.normalize ? sum_of(weights, rule.top_k) : 1.0f;
      for (int64_t i = 0; i < rule.top_k; ++i) weights[i] = rounded(rule.normalize ? weights[i] / sum : weights[i], dtype);
    }
  });
}

void gate(const GateArgs& a, int64_t tokens, int num_threads, const std::string& isa) {
  const auto body = PAGODA_BODY(isa, gate_rows);
  const int64_t rows = std::max<int64_t>(1, 8192 / std::max<int64_t>(1, a.width));
  parallel_for((tokens + rows - 1) / rows, num_threads, [&](int64_t i) { body(a, i * rows, std::min(tokens, (i + 1) * rows)); });
}

}  // namespace pagoda
