// Queries as the marks want them, and what goes before all scores; the scores themselves are page_scores_body.cpp's.
#include "page_scores.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "small_floats.hpp"

namespace pagoda {

namespace {

constexpr float kAhead = 2.0f;  // of a page that goes before all others, whose shares are below 1

struct Working {
  std::vector<float> raw, prepared, words, room, units, size;
  std::vector<int32_t> channels, order, offsets;
  std::vector<int8_t> codes;
};

thread_local Working working;

// The `rank` channels in which the group's queries are largest, in their order; each head grows by what it leaves out.
void thin(const PageScoreArgs& a, int64_t rank, Working& w) {
  std::vector<float>& size = w.size;
  size.assign(a.dim, 0.0f);
  for (int64_t h = 0; h < a.heads; ++h)
    for (int64_t d = 0; d < a.dim; ++d) size[d] += std::fabs(w.raw[h * a.dim + d]);
  w.order.resize(a.dim);
  std::iota(w.order.begin(), w.order.end(), 0);
  if (rank < a.dim)
    std::nth_element(w.order.begin(), w.order.begin() + rank, w.order.end(),
                     [&](int32_t x, int32_t y) { return size[x] != size[y] ? size[x] > size[y] : x < y; });
  w.channels.assign(w.order.begin(), w.order.begin() + rank);
  std::sort(w.channels.begin(), w.channels.end());
  for (int64_t h = 0; h < a.heads; ++h) {
    float part = 0.0f, all = 0.0f;
    for (int64_t d = 0; d < a.dim; ++d) all += std::fabs(w.raw[h * a.dim + d]);
    for (const int32_t d : w.channels) part += std::fabs(w.raw[h * a.dim + d]);
    const float covered = std::sqrt(part / std::max(all, 1e-9f));
    for (int64_t i = 0; i < rank; ++i) w.prepared[h * rank + i] = covered > 0.0f ? w.raw[h * a.dim + w.channels[i]] / covered : 0.0f;
  }
}

bool are_bf16(const std::vector<float>& numbers) {
  return std::all_of(numbers.begin(), numbers.end(), [](float x) { return (bits_of(x) & 0xffffu) == 0; });
}

// All numbers to the nearest of bfloat16, ties to even; `words` are them in pairs.
void round_to_bf16(std::vector<float>& numbers, std::vector<float>& words) {
  std::vector<uint16_t> halves(numbers.size());
  for (size_t i = 0; i < numbers.size(); ++i) halves[i] = bf16_bits(numbers[i]), numbers[i] = bf16_value(halves[i]);
  words.resize(halves.size() / 2);
  std::memcpy(words.data(), halves.data(), words.size() * sizeof(float));
}

// Each head's numbers to 127ths of its largest, ties to even.
void round_to_bytes(const PageScoreArgs& a, int64_t width, Working& w) {
  const int64_t stride = a.rule.stride;
  w.codes.assign(a.heads * stride, 0), w.units.resize(a.heads), w.offsets.resize(a.heads);
  for (int64_t h = 0; h < a.heads; ++h) {
    const float* q = &w.prepared[h * width];
    float top = 0.0f;
    for (int64_t d = 0; d < width; ++d) top = std::max(top, std::fabs(q[d]));
    const float unit = top > 0.0f ? 127.0f / top : 0.0f;
    int32_t sum = 0;
    for (int64_t d = 0; d < width; ++d) {
      const float shifted = q[d] * unit + 12582912.0f;  // 1.5 * 2^23: the integer is in its lowest bits
      const auto code = static_cast<int8_t>(static_cast<int32_t>(bits_of(shifted)) - 0x4b400000);  // 0 where q[d] is no number
      w.codes[h * stride + d] = code, sum += code;
    }
    w.units[h] = top * (1.0f / 127.0f), w.offsets[h] = 128 * sum;
  }
}

void prepare(const PageScoreArgs& a, int64_t width, Working& w) {
  w.prepared.assign(a.heads * width, 0.0f);
  if (Query(a.rule.query) == Query::thin) return thin(a, width, w);
  for (int64_t h = 0; h < a.heads; ++h) {
    const float* q = w.raw.data() + h * a.dim;
    float* out = w.prepared.data() + h * width;
    switch (Query(a.rule.query)) {
      case Query::split:
        for (int64_t d = 0; d < a.dim; ++d) out[d] = std::max(q[d], 0.0f), out[a.dim + d] = std::min(q[d], 0.0f);
        break;
      case Query::project:
        for (int64_t d = 0; d < a.dim; ++d)
          for (int64_t i = 0; i < width; ++i) out[i] += q[d] * a.given[d * width + i];
        break;
      case Query::turn:
        for (int64_t i = 0, half = a.dim / 2; i < half; ++i) {
          const float cosine = a.turn[i], sine = a.turn[half + i];
          out[i] = q[i] * cosine - q[half + i] * sine, out[half + i] = q[half + i] * cosine + q[i] * sine;
        }
        break;
      default: std::copy_n(q, a.dim, out);
    }
  }
}

// The pages whose number behind their mark is smallest, of equals the earlier.
void put_outliers_ahead(const PageScoreArgs& a, Working& w) {
  const float* odd = reinterpret_cast<const float*>(a.marks) + a.rule.stride - 1;
  const int64_t count = std::min(a.outliers, a.pages);
  w.order.resize(a.pages);
  std::iota(w.order.begin(), w.order.end(), 0);
  std::partial_sort(w.order.begin(), w.order.begin() + count, w.order.end(), [&](int32_t x, int32_t y) {
    const float one = odd[x * a.rule.stride], other = odd[y * a.rule.stride];
    return one != other ? one < other : x < y;
  });
  for (int64_t i = 0; i < count; ++i) a.out[w.order[i]] += kAhead;
}

}  // namespace

void check_pages(const int32_t* ids, int64_t count, int64_t offset, int64_t num_pages) {
  for (int64_t i = 0; i < count; ++i)
    if (const int64_t page = ids[i] + offset; page < 0 || page >= num_pages)
      throw std::out_of_range("page " + std::to_string(page) + " of " + std::to_string(num_pages));
}

void read_numbers(const void* from, Dtype dtype, int64_t count, float* out) {
  if (dtype == Dtype::f32) {
    std::memcpy(out, from, sizeof(float) * count);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = uint32_t{static_cast<const uint16_t*>(from)[i]} << 16;
    std::memcpy(out + i, &bits, 4);
  }
}

void score_pages(const PageScoreArgs& a, const void* queries, Dtype dtype, int64_t q_stride, const std::string& isa) {
  if (a.pages == 0) return;
  Working& w = working;
  w.raw.resize(a.heads * a.dim);
  for (int64_t h = 0; h < a.heads; ++h)
    read_numbers(static_cast<const char*>(queries) + h * q_stride * size_of(dtype), dtype, a.dim, &w.raw[h * a.dim]);
  PreparedQueries q;
  q.width = a.rule.width(a.dim);
  w.channels.clear();
  prepare(a, q.width, w);
  w.room.resize(page_score_room(a));
  if (a.rule.kind() == Marks::pairs) {
    round_to_bf16(w.prepared, w.words);
    q.words = w.words.data();
  }
  if (a.rule.kind() == Marks::bytes) {
    round_to_bytes(a, q.width, w);
    q.codes = w.codes.data(), q.units = w.units.data(), q.offsets = w.offsets.data();
  }
  q.are_bf16 = a.rule.kind() == Marks::keys && are_bf16(w.prepared);
  q.queries = w.prepared.data(), q.channels = w.channels.empty() ? nullptr : w.channels.data(), q.room = w.room.data();
  PAGODA_BODY(isa, run_page_scores)(a, q);
  if (a.outliers > 0) put_outliers_ahead(a, w);
}

}  // namespace pagoda
