// Queries as the marks of pages want them, for one instruction set (page_scores.hpp).
#include "across.hpp"
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

// What the sizes of each head's `count` numbers come to.
template <int kHeads, typename Join>
inline void join_sizes(const float* x, int64_t count, Join join, float* out) {
  Vec found[kHeads] = {};
  for (int64_t i = 0; i < count; i += kLanes)
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) found[h] = join(found[h], without_sign(load_some(x + h * count + i, count - i)));
  store_across(found, join, out);
}

// out [kHeads][count]: some of each head's `all` numbers. Whole registers are written at once: of numbers that were written one by one a
// register is read late.
template <int kHeads>
inline void pick(const float* numbers, int64_t all, const int32_t* which, int64_t count, float* out) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + kLanes <= count; i += kLanes) {
    const __m512i places = _mm512_loadu_si512(which + i);
    const __mmask16 second = _mm512_cmpge_epi32_mask(places, _mm512_set1_epi32(2 * kLanes));
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      const float* const from = numbers + h * all;
      const auto at = [&](int n) { return (__m512)load(from + n * kLanes); };
      if (all == 4 * kLanes)  // which are in four registers: the machine would gather them one by one
        store(out + h * count + i, (Vec)_mm512_mask_blend_ps(second, _mm512_permutex2var_ps(at(0), places, at(1)),
                                                             _mm512_permutex2var_ps(at(2), places, at(3))));
      else store(out + h * count + i, (Vec)_mm512_i32gather_ps(places, from, 4));
    }
  }
#endif
  for (; i < count; ++i)
    for (int h = 0; h < kHeads; ++h) out[h * count + i] = numbers[h * all + which[i]];
}

// 0 where nothing above 0 divides.
inline Vec quotient(Vec x, Vec by) {
  const IntVec some = by > 0.0f;
  return select(some, x, Vec{}) / select(some, by, splat(1.0f));
}

inline Vec root_of(Vec x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_sqrt_ps((__m512)x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// The `rank` channels in which the group's queries are largest, in their order; `growth` [heads + kPageScorePad] is for what each head
// leaves out. `size` [dim]; `channels` [3 (dim + kPageScorePad)], of which the first are the answer.
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
  by_heads(a.heads, [&](int64_t head, auto n) {
    const float* const q = raw + head * a.dim;
    float* const few = out + head * rank;
    float all[2 * kHeadsTogether], covered[2 * kHeadsTogether];
    join_sizes<n.value>(q, a.dim, plus, all);
    pick<n.value>(q, a.dim, channels, rank, few);
    join_sizes<n.value>(few, rank, plus, covered);
    for (int h = 0; h < kHeadsTogether; h += kLanes) {  // together: a root takes long
      const Vec whole = maximum(load(all + h), splat(1e-9f));
      store(growth + head + h, root_of(quotient(whole, load(covered + h))));
    }
  });
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

#if defined(__AVX512BW__)

// Codes of up to eight heads, a register of each, as PreparedQueries has them: `fours` of them, of which each has `heads`. Returns
// the sums of a head's codes, four at a time: [four][head] of four heads.
template <int kHeads>
inline void store_codes(const IntVec (&codes)[kHeads], int64_t fours, int64_t heads, int8_t* out, __m512i (&sums)[2]) {
  for (int half = 0; half < (kHeads + 3) / 4; ++half) {
    const auto at = [&](int h) { return 4 * half + h < kHeads ? (__m512i)codes[4 * half + h] : _mm512_setzero_si512(); };
    // A quarter of each head's are a four.
    const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(at(0), at(1)), _mm512_packs_epi32(at(2), at(3)));
    sums[half] = _mm512_add_epi32(sums[half], _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_set1_epi8(1), bytes), _mm512_set1_epi16(1)));
    const __mmask8 some = kHeads - 4 * half < 4 ? (1 << (kHeads - 4 * half)) - 1 : 0xf;
    const auto put = [&](int64_t four, __m128i words) {
      if (four < fours) _mm_mask_storeu_epi32(out + (four * heads + 4 * half) * 4, some, words);
    };
    put(0, _mm512_castsi512_si128(bytes)), put(1, _mm512_extracti32x4_epi32(bytes, 1));
    put(2, _mm512_extracti32x4_epi32(bytes, 2)), put(3, _mm512_extracti32x4_epi32(bytes, 3));
  }
}

inline void store_starts(const __m512i (&sums)[2], int count, int32_t* starts) {
  const auto of = [&](int half) {
    const __m256i two = _mm256_add_epi32(_mm512_castsi512_si256(sums[half]), _mm512_extracti64x4_epi64(sums[half], 1));
    return _mm_add_epi32(_mm256_castsi256_si128(two), _mm256_extracti128_si256(two, 1));
  };
  const __m256i all = _mm256_inserti128_si256(_mm256_castsi128_si256(of(0)), of(1), 1);
  _mm256_mask_storeu_epi32(starts, (1 << count) - 1, _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(all, 7)));
}

#endif

// Each head's numbers to 127ths of its largest, ties to even; codes [fours][heads][4], zeros behind the last one. Thin queries grow
// afterwards: their growth is a sum, whose last bit would decide about numbers half way between two codes.
void round_to_bytes(const PageScoreArgs& a, const float* prepared, const PreparedQueries& q, const QueryRoom& room) {
  const int64_t width = q.width, fours = q.fours();
  const bool is_thin = Query(a.rule.query) == Query::thin;
  by_heads(a.heads, [&](int64_t head, auto n) {
    const float* const numbers = prepared + head * width;
    float tops[2 * kHeadsTogether], units[2 * kHeadsTogether];
    join_sizes<n.value>(numbers, width, larger, tops);
    for (int h = 0; h < kHeadsTogether; h += kLanes) {
      const Vec top = load(tops + h), unit = top * (1.0f / 127.0f);
      store(units + h, quotient(splat(127.0f), top));
      store(room.units + head + h, is_thin ? unit * load(room.growth + head + h) : unit);
    }
    const auto codes_of = [&](int h, int64_t d) {
      const Vec shifted = load_some(numbers + h * width + d, width > d ? width - d : 0) * units[h] + splat(12582912.0f);  // 1.5 * 2^23: the integer is in its lowest bits
      return ((IntVec)shifted - 0x4b400000) << 24 >> 24;  // 0 where it is no number
    };
#if defined(__AVX512BW__)
    __m512i sums[2] = {};
    for (int64_t d = 0; d < 4 * fours; d += kLanes) {
      IntVec codes[n.value];
#pragma GCC unroll 8
      for (int h = 0; h < n.value; ++h) codes[h] = codes_of(h, d);
      store_codes(codes, fours - d / 4, a.heads, room.codes + (d / 4 * a.heads + head) * 4, sums);
    }
    store_starts(sums, n.value, room.starts + head);
#else
    for (int h = 0; h < n.value; ++h) {
      IntVec sum{};
      for (int64_t d = 0; d < 4 * fours; d += kLanes) {
        const IntVec codes = codes_of(h, d);
        sum += codes;
        for (int64_t i = 0; i < kLanes && d + i < 4 * fours; ++i) room.codes[((d + i) / 4 * a.heads + head + h) * 4 + i % 4] = int8_t(codes[i]);
      }
      int32_t all = 0;
      for (int i = 0; i < kLanes; ++i) all += sum[i];
      room.starts[head + h] = -128 * all;
    }
#endif
  });
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
  if (Query(a.rule.query) == Query::thin) thin(a, raw, q.width, raw + a.heads * a.dim, room.channels, out, room.growth), q.channels = room.channels;
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
