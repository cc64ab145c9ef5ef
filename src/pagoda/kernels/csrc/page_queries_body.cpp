// Queries as the marks of pages want them, for one instruction set (page_scores.hpp).
#include "attention_math.hpp"
#include "by_heads.hpp"
#include "page_best.hpp"
#include "page_scores.hpp"

namespace pagoda {
namespace {

// float32 or bfloat16 as floats.
void read(const char* from, Dtype dtype, int64_t count, float* out) {
  if (dtype == Dtype::f32) memcpy(out, from, sizeof(float) * count);
  else for (int64_t i = 0; i < count; ++i) out[i] = widen(((const uint16_t*)from)[i]);
}

float sum_of_sizes(const float* x, int64_t count) {
  Vec sum{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sum += without_sign(load(x + i));
  float total = i ? total_of(sum) : 0.0f;
  for (; i < count; ++i) total += __builtin_fabsf(x[i]);
  return total;
}

float largest_size(const float* x, int64_t count) {
  Vec top{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) top = maximum(without_sign(load(x + i)), top);
  float most = largest(top);
  for (; i < count; ++i) most = __builtin_fabsf(x[i]) > most ? __builtin_fabsf(x[i]) : most;
  return most;
}

// out [count]: some of `all` numbers. Whole registers are written at once: of numbers that were written one by one a register is read late.
void pick(const float* numbers, int64_t all, const int32_t* which, int64_t count, float* out) {
  int64_t i = 0;
#if defined(__AVX512F__)
  if (all == 4 * kLanes) {  // which are in four registers: the machine would gather them one by one
    const auto at = [&](int n) { return (__m512)load(numbers + n * kLanes); };
    for (; i + kLanes <= count; i += kLanes) {
      const __m512i places = _mm512_loadu_si512(which + i);
      const __m512 low = _mm512_permutex2var_ps(at(0), places, at(1)), high = _mm512_permutex2var_ps(at(2), places, at(3));
      store(out + i, (Vec)_mm512_mask_blend_ps(_mm512_cmpge_epi32_mask(places, _mm512_set1_epi32(2 * kLanes)), low, high));
    }
  }
  for (; i + kLanes <= count; i += kLanes) store(out + i, (Vec)_mm512_i32gather_ps(_mm512_loadu_si512(which + i), numbers, 4));
#endif
  for (; i < count; ++i) out[i] = numbers[which[i]];
}

// The `rank` channels in which the group's queries are largest, in their order; `growth` [heads] is for what each head leaves out.
// `size` [dim]; `channels` [3 (dim + kPageScorePad)], of which the first are the answer.
void thin(const PageScoreArgs& a, const float* raw, int64_t rank, float* size, int32_t* channels, float* out, float* growth) {
  int64_t done = 0;
  for (; done + kLanes <= a.dim; done += kLanes) {
    Vec sum{};
    for (int64_t h = 0; h < a.heads; ++h) sum += without_sign(load(raw + h * a.dim + done));
    store(size + done, sum);
  }
  for (; done < a.dim; ++done) {
    size[done] = 0.0f;
    for (int64_t h = 0; h < a.heads; ++h) size[done] += __builtin_fabsf(raw[h * a.dim + done]);
  }
  int32_t* const keys = channels + a.dim + kPageScorePad;
  order(size, a.dim, keys);
  largest_keys(keys, a.dim, rank, channels);
  for (int64_t h = 0; h < a.heads; ++h) {
    const float *q = raw + h * a.dim, all = sum_of_sizes(q, a.dim);
    pick(q, a.dim, channels, rank, out + h * rank);
    growth[h] = sum_of_sizes(out + h * rank, rank) / (all > 1e-9f ? all : 1e-9f);
  }
  for (int64_t h = 0; h < a.heads; ++h) {  // together: a root takes long
    const float covered = __builtin_sqrtf(growth[h]);
    growth[h] = covered > 0.0f ? 1.0f / covered : 0.0f;
  }
}

// A register of the matrix.
inline Vec load(const int8_t* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#else
  Vec x;
  for (int i = 0; i < kLanes; ++i) x[i] = float(p[i]);
  return x;
#endif
}

// The queries of kHeads heads with the matrix: a row of it is read once for all of them.
template <int kHeads>
void project(const PageScoreArgs& a, const float* q, int64_t width, float* out) {
  const int8_t* const given = (const int8_t*)a.given;
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    Vec sum[2][kHeads] = {};  // so that none waits for the one before
    int64_t d = 0;
    for (; d + 2 <= a.dim; d += 2)
#pragma GCC unroll 2
      for (int n = 0; n < 2; ++n) {
        const Vec row = load(given + (d + n) * width + i);
#pragma GCC unroll 8
        for (int h = 0; h < kHeads; ++h) sum[n][h] = fused(row, q[h * a.dim + d + n], sum[n][h]);
      }
    for (; d < a.dim; ++d)
      for (int h = 0; h < kHeads; ++h) sum[0][h] = fused(load(given + d * width + i), q[h * a.dim + d], sum[0][h]);
    for (int h = 0; h < kHeads; ++h) store(out + h * width + i, (sum[0][h] + sum[1][h]) * kGivenUnit);
  }
  for (; i < width; ++i)
    for (int h = 0; h < kHeads; ++h) {
      float sum = 0.0f;
      for (int64_t d = 0; d < a.dim; ++d) sum += q[h * a.dim + d] * float(given[d * width + i]);
      out[h * width + i] = sum * kGivenUnit;
    }
}

void prepare(const PageScoreArgs& a, const float* q, float* out) {
  const int64_t half = a.dim / 2;
  switch (Query(a.rule.query)) {
    case Query::split:
      for (int64_t d = 0; d < a.dim; ++d) out[d] = q[d] < 0.0f ? 0.0f : q[d];
      for (int64_t d = 0; d < a.dim; ++d) out[a.dim + d] = q[d] > 0.0f ? 0.0f : q[d];
      break;
    case Query::turn:
      for (int64_t i = 0; i < half; ++i) out[i] = q[i] * a.turn[i] - q[half + i] * a.turn[half + i];
      for (int64_t i = 0; i < half; ++i) out[half + i] = q[half + i] * a.turn[i] + q[i] * a.turn[half + i];
      break;
    default: memcpy(out, q, sizeof(float) * a.dim);
  }
}

// Each head's numbers to 127ths of its largest, ties to even; codes [fours][heads][4], zeros behind the last one. Thin queries grow
// afterwards: their growth is a sum, whose last bit would decide about numbers half way between two codes.
void round_to_bytes(const PageScoreArgs& a, const float* prepared, const PreparedQueries& q, const QueryRoom& room) {
  const int64_t width = q.width, fours = q.fours();
  for (int64_t h = 0; h < a.heads; ++h) {
    const float *numbers = prepared + h * width, top = largest_size(numbers, width), unit = top > 0.0f ? 127.0f / top : 0.0f;
    IntVec sum{};
    for (int64_t d = 0; d < 4 * fours; d += kLanes) {
      const Vec shifted = load_some(numbers + d, width > d ? width - d : 0) * unit + splat(12582912.0f);  // 1.5 * 2^23: the integer is in its lowest bits
      const IntVec codes = ((IntVec)shifted - 0x4b400000) << 24 >> 24;  // 0 where it is no number
      sum += codes;
      int8_t bytes[kLanes];
#if defined(__AVX512F__)
      _mm_storeu_si128((__m128i*)bytes, _mm512_cvtepi32_epi8((__m512i)codes));
#else
      for (int i = 0; i < kLanes; ++i) bytes[i] = int8_t(codes[i]);
#endif
      for (int64_t i = 0; i < kLanes && d + i < 4 * fours; i += 4) memcpy(room.codes + ((d + i) / 4 * a.heads + h) * 4, bytes + i, 4);
    }
    int32_t all = 0;
#if defined(__AVX512F__)
    all = _mm512_reduce_add_epi32((__m512i)sum);
#else
    for (int i = 0; i < kLanes; ++i) all += sum[i];
#endif
    room.units[h] = top * (1.0f / 127.0f) * (Query(a.rule.query) == Query::thin ? room.units[h] : 1.0f), room.starts[h] = -128 * all;
  }
}

bool are_bf16(const float* numbers, int64_t count) {
  uint32_t any = 0, bits;
  for (int64_t i = 0; i < count; ++i) memcpy(&bits, numbers + i, 4), any |= bits & 0xffffu;
  return any == 0;
}

typedef double WideVec __attribute__((vector_size(8 * kLanes)));

double total_of(WideVec x) {
  double sum = 0.0;
  for (int i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

// How alike two rows are: in doubles, whose sums may be in any order.
struct Likeness {
  double both = 0.0, mine = 0.0, its = 0.0;

  void add(const float* now, const float* last, int64_t count) {
    WideVec sums[3] = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      const WideVec x = __builtin_convertvector(load(now + i), WideVec), y = __builtin_convertvector(load(last + i), WideVec);
      sums[0] += x * y, sums[1] += x * x, sums[2] += y * y;
    }
    both += total_of(sums[0]), mine += total_of(sums[1]), its += total_of(sums[2]);
    for (; i < count; ++i) both += double{now[i]} * last[i], mine += double{now[i]} * now[i], its += double{last[i]} * last[i];
  }
};

}  // namespace

namespace PAGODA_ISA {

void prepare_queries(const PageScoreArgs& a, const void* queries, Dtype dtype, int64_t q_stride, const QueryRoom& room,
                     PreparedQueries& q) {
  const int64_t bytes = dtype == Dtype::f32 ? 4 : 2, count = a.heads * q.width;
  float *const raw = room.queries, *const out = raw + (a.heads + 1) * (a.dim + kPageScorePad);
  for (int64_t h = 0; h < a.heads; ++h) read((const char*)queries + h * q_stride * bytes, dtype, a.dim, raw + h * a.dim);
  if (Query(a.rule.query) == Query::thin) thin(a, raw, q.width, raw + a.heads * a.dim, room.channels, out, room.units), q.channels = room.channels;
  else if (Query(a.rule.query) == Query::project)
    by_heads(a.heads, [&](int64_t head, auto n) { project<n.value>(a, raw + head * a.dim, q.width, out + head * q.width); });
  else for (int64_t h = 0; h < a.heads; ++h) prepare(a, raw + h * a.dim, out + h * q.width);
  q.queries = out;
  if (a.rule.kind() == Marks::bytes || a.rule.kind() == Marks::columns) {
    round_to_bytes(a, out, q, room);
    q.codes = room.codes, q.units = room.units, q.starts = room.starts;
  }
  q.are_bf16 = a.rule.kind() == Marks::keys && are_bf16(out, count);
}

bool is_alike(const void* queries, Dtype dtype, int64_t heads, int64_t dim, int64_t q_stride, float alike, float* room, float* last) {
  const int64_t bytes = dtype == Dtype::f32 ? 4 : 2;
  Likeness found;
  for (int64_t h = 0; h < heads; ++h) {
    read((const char*)queries + h * q_stride * bytes, dtype, dim, room + h * dim);
    found.add(room + h * dim, last + h * dim, dim);
  }
  if (found.its > 0.0 && found.both > double{alike} * __builtin_sqrt(found.mine * found.its)) return true;
  memcpy(last, room, sizeof(float) * heads * dim);
  return false;
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
