// Registers of PAGODA_LANES floats in g++'s portable vector extensions, and what the bodies do with them. Included once in
// every object compiled for one instruction set: all names stay inside the object.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Floats in a register; whether the dot product of bfloat16 pairs is there (vdpbf16ps), and that of tiles of them (AMX).
#if defined(__AVX512F__)
#define PAGODA_LANES 16
#elif defined(__AVX2__)
#define PAGODA_LANES 8
#else
#define PAGODA_LANES 4
#endif
#if defined(__AVX512BF16__)
#define PAGODA_DPBF16 1
#else
#define PAGODA_DPBF16 0
#endif
#if defined(__AMX_BF16__)
#define PAGODA_AMX 1
#else
#define PAGODA_AMX 0
#endif

namespace pagoda {
namespace {

constexpr int kLanes = PAGODA_LANES;

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t UintVec __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * kLanes)));

const float kInf = __builtin_inff();

inline Vec splat(float x) { return x - Vec{}; }

inline Vec load(const float* p) {
  Vec x;
  memcpy(&x, p, sizeof x);
  return x;
}

inline Vec load_some(const float* p, int64_t count) {  // then zeros
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps(__mmask16(count < kLanes ? (1u << count) - 1 : 0xffffu), p);
#else
  Vec x{};
  memcpy(&x, p, sizeof(float) * (count < kLanes ? count : kLanes));
  return x;
#endif
}

inline void store(float* p, Vec x) { memcpy(p, &x, sizeof x); }

inline Vec load(const uint16_t* p) {  // bfloat16: the upper half of a float
#if defined(__AVX512F__)  // one vpmovzxwd; g++ 12 makes five instructions of the portable line
  return (Vec)(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
#elif defined(__AVX2__)
  return (Vec)(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
#else
  HalfVec h;
  memcpy(&h, p, sizeof h);
  return (Vec)(__builtin_convertvector(h, UintVec) << 16);
#endif
}

inline float widen(float x) { return x; }
inline float widen(uint16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}

inline void narrow(float x, float* out) { *out = x; }
inline void narrow(float x, uint16_t* out) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  bits = x != x ? (bits | 0x400000u) : bits + 0x7fffu + ((bits >> 16) & 1u);
  *out = uint16_t(bits >> 16);
}

inline void store(uint16_t* p, Vec x) {  // as bfloat16, to nearest, ties to even
  const UintVec bits = (UintVec)x;
  const UintVec up = bits + 0x7fffu + ((bits >> 16) & 1u);
  const UintVec quiet = bits | 0x400000u;
  const HalfVec half = __builtin_convertvector((x == x ? up : quiet) >> 16, HalfVec);
  memcpy(p, &half, sizeof half);
}

inline Vec select(IntVec mask, Vec yes, Vec no) { return mask ? yes : no; }
inline Vec maximum(Vec a, Vec b) { return a > b ? a : b; }
inline Vec without_sign(Vec x) { return (Vec)((IntVec)x & 0x7fffffff); }

// ---- a product and a sum, rounded once ----------------------------------------------------------------------------------------
//
// The compiler fuses nothing by itself (-ffp-contract=off): which of a * b + c it would fuse differs between bodies and between
// compilers (g++ 13 fused the sums of one token and not those of two), and a token must have its bits whoever shares the call and
// whoever compiled. What is to be rounded once says so. Without the instruction (base) every step is rounded.

inline Vec fused(Vec a, Vec b, Vec c) {  // a * b + c
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

inline Vec fused_less(Vec a, Vec b, Vec c) {  // a * b - c
#if defined(__AVX512F__)
  return (Vec)_mm512_fmsub_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (Vec)_mm256_fmsub_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b - c;
#endif
}

inline Vec less_fused(Vec a, Vec b, Vec c) {  // c - a * b
#if defined(__AVX512F__)
  return (Vec)_mm512_fnmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (Vec)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return c - a * b;
#endif
}

inline Vec fused(Vec a, float b, Vec c) { return fused(a, splat(b), c); }
inline Vec fused(Vec a, Vec b, float c) { return fused(a, b, splat(c)); }
inline Vec fused(Vec a, float b, float c) { return fused(a, splat(b), splat(c)); }

#if defined(__FMA__)
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
inline float fused(float a, float b, float c) { return a * b + c; }
inline double fused(double a, double b, double c) { return a * b + c; }
#endif

inline float total_of(Vec x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(x);
#else
  float lanes[kLanes], sum = 0.0f;
  store(lanes, x);
  for (float lane : lanes) sum += lane;
  return sum;
#endif
}

// e^x for x <= 88; exactly 0 below -87 (so for -inf). Cephes' polynomial, 1-2 ulp.
inline Vec exponential(Vec x) {
  const IntVec dead = x < splat(-87.0f);
  x = select(dead, splat(-87.0f), x);
  const Vec shifted = fused(x, 1.44269504f, 12582912.0f);  // 1.5 * 2^23: rounds to the nearest integer
  const Vec n = shifted - splat(12582912.0f);
  Vec r = fused(n, -0.693359375f, x);
  r = fused(n, 2.12194440e-4f, r);
  Vec p = fused(r, 1.9875691500e-4f, 1.3981999507e-3f);
  p = fused(p, r, 8.3334519073e-3f);
  p = fused(p, r, 4.1665795894e-2f);
  p = fused(p, r, 1.6666665459e-1f);
  p = fused(p, r, 5.0000001201e-1f);
  p = fused(p * r, r, r) + splat(1.0f);
  const IntVec power = (__builtin_convertvector(n, IntVec) + 127) << 23;
  return select(dead, Vec{}, p * (Vec)power);
}

inline Vec tanh_of(Vec x) {
  x = maximum(splat(-15.0f), -maximum(splat(-15.0f), -x));
  return splat(1.0f) - splat(2.0f) / (exponential(x + x) + splat(1.0f));
}

}  // namespace
}  // namespace pagoda
