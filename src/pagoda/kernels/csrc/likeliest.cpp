#include "likeliest.hpp"

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "parallel.hpp"

namespace pagoda {

namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

struct Token {
  float value;
  int64_t id;
};

bool better(const Token& a, const Token& b) { return a.value != b.value ? a.value > b.value : a.id < b.id; }

void likeliest_of(const float* x, int64_t count, int64_t width, float* values, int64_t* ids,
                  int64_t (*body)(const float*, int64_t, float*, bool*)) {
  std::vector<float> largest(count / kGroup + 1);
  bool nan = false;
  const int64_t lanes = body(x, count, largest.data(), &nan), blocks = count / (kGroup * lanes);
  const int64_t rest = blocks * kGroup * lanes;
  for (int64_t i = rest; i < count; ++i) nan |= x[i] != x[i];
  if (nan) {  // no order to speak of: whoever asked finds it at once
    for (int64_t i = 0; i < width; ++i) values[i] = std::numeric_limits<float>::quiet_NaN(), ids[i] = i;
    return;
  }
  const int64_t groups = blocks * lanes;
  float bound = kForbidden;
  if (groups > width) {
    std::vector<float> order(largest.begin(), largest.begin() + groups);
    std::nth_element(order.begin(), order.begin() + width - 1, order.end(), std::greater<float>());
    bound = order[width - 1];
  }
  const bool few = bound == kForbidden;  // a grammar may forbid nearly all: those are not gathered
  std::vector<Token> found;
  const auto look = [&](int64_t i) {
    if (x[i] >= bound && (!few || x[i] > bound)) found.push_back({x[i], i});
  };
  for (int64_t group = 0; group < groups; ++group) {
    if (largest[group] < bound) continue;
    const int64_t first = group / lanes * kGroup * lanes + group % lanes;
    for (int64_t i = 0; i < kGroup; ++i) look(first + i * lanes);
  }
  for (int64_t i = rest; i < count; ++i) look(i);
  for (int64_t i = 0, missing = width - int64_t(found.size()); missing > 0; ++i)
    if (x[i] == kForbidden) found.push_back({x[i], i}), --missing;
  std::partial_sort(found.begin(), found.begin() + width, found.end(), better);
  for (int64_t i = 0; i < width; ++i) values[i] = found[i].value, ids[i] = found[i].id;
}

}  // namespace

void likeliest(const float* logits, int64_t rows, int64_t count, int64_t width, float* values, int64_t* ids, int num_threads,
               const std::string& isa) {
  const auto body = PAGODA_BODY(isa, largest_of_groups);
  parallel_for(rows, num_threads,
               [&](int64_t row) { likeliest_of(logits + row * count, count, width, values + row * width, ids + row * width, body); });
}

}  // namespace pagoda
