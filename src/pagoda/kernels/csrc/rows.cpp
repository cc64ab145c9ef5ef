#include "rows.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.hpp"

namespace pagoda {

namespace {

// Elements of one item. Waking a worker that spins costs about a microsecond, in which a core handles some 4,000 elements.
constexpr int64_t kItem = 8192;

// Calls body(first, end) over 0..count in parts of about kItem elements, `width` of which belong to one of count.
template <typename Body>
void split(int64_t count, int64_t width, int num_threads, Body body) {
  const int64_t step = std::max<int64_t>(1, kItem / std::max<int64_t>(1, width));
  parallel_for((count + step - 1) / step, num_threads,
               [&](int64_t i) { body(i * step, std::min(count, (i + 1) * step)); });
}

}  // namespace

void norm(const NormArgs& a, int num_threads, const std::string& isa) {
  const auto body = PAGODA_BODY(isa, norm_rows);
  split(a.rows, a.parts * a.dim, num_threads, [&](int64_t first, int64_t end) { body(a, first, end); });
}

void rotary(const RotaryArgs& a, int num_threads, const std::string& isa) {
  const auto body = PAGODA_BODY(isa, rotary_rows);
  split(a.rows, a.heads * a.pairs * 2, num_threads, [&](int64_t first, int64_t end) { body(a, first, end); });
}

void activation(const ActivationArgs& a, int num_threads, const std::string& isa) {
  const auto body = PAGODA_BODY(isa, activation_columns);
  const int64_t parts = (a.width + kItem / 4 - 1) / (kItem / 4), step = (a.width + parts - 1) / std::max<int64_t>(1, parts);
  parallel_for(a.rows * parts, num_threads, [&](int64_t i) {
    const int64_t first = i % parts * step;
    body(a, i / parts, first, std::min(a.width, first + step));
  });
}

void add(const AddArgs& a, int num_threads, const std::string& isa) {
  const auto body = PAGODA_BODY(isa, add_elements);
  split(a.count, 1, num_threads, [&](int64_t first, int64_t end) { body(a, first, end); });
}

void add_norm(const AddArgs& sum, const NormArgs& a, int num_threads, const std::string& isa) {
  const auto add_body = PAGODA_BODY(isa, add_elements);
  const auto norm_body = PAGODA_BODY(isa, norm_rows);
  const int64_t most = std::max<int64_t>(1, a.rows / (2 * num_threads));  // rows of an item, so that there are some for each thread
  split(a.rows, sum.tile ? std::max(a.dim / 2, kItem / most) : 2 * a.dim, num_threads, [&](int64_t first, int64_t end) {
    if (sum.tile) {  // several rows at a time, whose parts of a tile are neighbours
      add_body(sum, first * a.dim, end * a.dim);
      return norm_body(a, first, end);
    }
    for (int64_t row = first; row < end; ++row) add_body(sum, row * a.dim, (row + 1) * a.dim), norm_body(a, row, row + 1);
  });
}

void clip(void* x, int64_t rows, int64_t width, int64_t row_stride, Dtype dtype, float bound, const std::string& isa) {
  PAGODA_BODY(isa, clip_rows)(x, rows, width, row_stride, dtype, bound);
}

void greedy(const float* logits, int64_t rows, int64_t width, int64_t* ids, int num_threads, const std::string& isa) {
  const auto body = PAGODA_BODY(isa, largest_of);
  constexpr int64_t kParts = 16, kSmall = 16384;  // parts of a row: 3 us each of the largest vocabularies
  const int64_t parts = width > kSmall ? kParts : 1;
  struct Found {
    float largest;
    int64_t place;
  };
  static thread_local std::vector<Found> kept;  // by the thread that calls: a step does
  kept.resize(rows * parts);
  Found* const found = kept.data();
  parallel_for(rows * parts, num_threads, [&](int64_t i) {
    const int64_t first = i % parts * width / parts, end = (i % parts + 1) * width / parts;
    body(logits + i / parts * width + first, end - first, &found[i].largest, &found[i].place);
    found[i].place += first;
  });
  for (int64_t row = 0; row < rows; ++row) {
    int64_t winner = row * parts;
    for (int64_t i = winner; i < (row + 1) * parts; ++i)
      if (found[i].largest > found[winner].largest || found[i].largest != found[i].largest) winner = i;  // a NaN wins, and stays
    ids[row] = std::isfinite(found[winner].largest) ? found[winner].place : -1;
  }
}

}  // namespace pagoda
