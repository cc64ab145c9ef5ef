// What the inner loops multiply. A line of a panel is sixteen rows of 32 bits; a step of a token is 32 bits, the same for all
// rows. An operand says how many steps a line meets, which numbers of the line meet step n, and how they are multiplied.
//
//   Floats, FloatsOf<bits>   a step is a float         fp32; bf16, int8, int5, int4, ternary turned into floats
//   FloatsOfHalves, FloatsOfE4M3, FloatsOfLevels       fp16, fp8, nf4, likewise
//   Pairs, PairsOf<bits>     a pair of bfloat16        bf16; int8, int5, int4, ternary turned into bfloat16 (exact)
//   PairsOfE4M3                                        fp8, likewise
//   Quads<bits>              four int8                 int8, int4, ternary as unsigned bytes
//
// Integers come less their offset for Floats and Pairs (int4 always less eight, int5 less sixteen), as they are stored for Quads.
#pragma once

#include "packed.hpp"
#include "small_floats.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

constexpr int kVecs = kPanel / kLanes;  // registers of a panel

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

inline UintVec load_lanes(const void* p) {
  UintVec x;
  memcpy(&x, p, sizeof x);
  return x;
}

inline UintVec splat_word(uint32_t x) { return x - UintVec{}; }

inline IntVec load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)  // g++ 12 takes the portable lines byte by byte
  return (IntVec)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (IntVec)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  IntVec x;
  for (int i = 0; i < kLanes; ++i) x[i] = p[i];
  return x;
#endif
}

inline Vec to_floats(Vec x) { return x; }
inline Vec to_floats(IntVec x) { return __builtin_convertvector(x, Vec); }

inline IntVec fused(IntVec a, IntVec b, IntVec c) { return a * b + c; }  // integers round nothing

// The input of a block that field f of a lane holds.
constexpr int element_of(int field, int fields) { return field < fields / 2 ? 2 * field : 2 * (field - fields / 2) + 1; }

// Tokens of a tile: its sums, [tokens][panels][kVecs], stay in registers beside the operands.
constexpr int kMaxTokens = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 3;

struct Floats {
  typedef Vec Sum;
  typedef Vec Step;
  typedef UintVec Line;
  static constexpr int kSteps = 1, kDirect = kMaxTokens;  // kDirect: tokens up to which lines are turned in registers
  static Line open(UintVec line) { return line; }
  static UintVec numbers(Line line, int) { return line; }
  static Step step(uint32_t x) { return (Vec)splat_word(x); }
  static Sum add(Sum sum, UintVec numbers, Step x) { return fused((Vec)numbers, x, sum); }
};

// Opening bfloat16 takes two instructions a line, so a tile of any number of tokens does. (Turned into floats in memory, 32 tokens of [9728, 896] read
// twice the bytes: 2.6 ms, opened in registers 1.7; 512 tokens 27.7 ms and 27.3.)
template <int kBits>
struct FloatsOf : Floats {
  static constexpr int kSteps = 32 / kBits, kDirect = kBits == 16 && kLanes == 16 ? kMaxTokens : 2;
  static UintVec numbers(UintVec line, int n) {
    if (kBits == 16) return n == 0 ? line << 16 : line & 0xffff0000u;
    constexpr uint32_t kMask = kBits < 32 ? (uint32_t{1} << kBits % 32) - 1 : ~0u;
    const IntVec q = (IntVec)((line >> shift_of(n, kBits)) & kMask);
    return (UintVec)(__builtin_convertvector(q, Vec) - splat(float(middle_of(kBits))));
  }
};

// The lower halves of lanes as floats.
inline UintVec floats_of_halves(UintVec halves) {
#if defined(__AVX512F__)
  return (UintVec)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)halves));
#elif defined(__AVX2__)
  const __m256i x = (__m256i)(halves & 0xffffu);
  return (UintVec)_mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
#else  // as half_value
  return (halves & 0x8000u) << 16 | (UintVec)((Vec)((halves & 0x7fffu) << 13) * 0x1p112f);
#endif
}

struct FloatsOfHalves : Floats {
  static constexpr int kSteps = 2, kDirect = 2;
  static UintVec numbers(UintVec line, int n) { return floats_of_halves(n == 0 ? line : line >> 16); }
};

struct FloatsOfE4M3 : Floats {
  static constexpr int kSteps = 4, kDirect = 2;
  static UintVec numbers(UintVec line, int n) {
    const UintVec byte = line >> shift_of(n, 8);
    return (byte & 0x80u) << 24 | (UintVec)((Vec)((byte & 0x7fu) << 20) * 0x1p120f);
  }
};

struct FloatsOfLevels : Floats {
  static constexpr int kSteps = 8, kDirect = 2;
  static UintVec numbers(UintVec line, int n) {
    const UintVec index = line >> shift_of(n, 4);
#if defined(__AVX512F__)  // looks at the lowest four bits
    return (UintVec)_mm512_permutexvar_ps((__m512i)index, _mm512_load_ps(kNormalLevels));
#elif defined(__AVX2__)  // at three, and at the sign
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(kNormalLevels), (__m256i)index);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(kNormalLevels + 8), (__m256i)index);
    return (UintVec)_mm256_blendv_ps(low, high, _mm256_castsi256_ps((__m256i)(index << 28)));
#else
    Vec levels;
    for (int i = 0; i < kLanes; ++i) levels[i] = kNormalLevels[index[i] & 15];
    return (UintVec)levels;
#endif
  }
};

#if PAGODA_DPBF16

struct Pairs {
  typedef Vec Sum;
  typedef __m512bh Step;
  typedef __m512i Line;
  static constexpr int kSteps = 1, kDirect = kMaxTokens;
  static Line open(UintVec line) { return (__m512i)line; }
  static UintVec numbers(Line line, int) { return (UintVec)line; }
  static Step step(uint32_t x) { return (__m512bh)_mm512_set1_epi32(x); }
  static Sum add(Sum sum, UintVec numbers, Step x) { return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)numbers, x); }
};

// Looked up by the lowest five bits of a word: those above the field must not matter.
template <int kBits>
struct WordTable {
  alignas(64) uint16_t entry[32];
  constexpr WordTable() : entry() {
    for (int i = 0; i < 32; ++i) entry[i] = small_bf16(i % (1 << kBits) - int(middle_of(kBits)));
  }
};

template <int kBits>
constexpr WordTable<kBits> kWords{};

template <int kBits>  // int5, int4, ternary
struct PairsOf : Pairs {
  static constexpr int kSteps = 16 / kBits, kDirect = kBits == 2 ? 4 : 12;
  static UintVec numbers(__m512i line, int n) {
    return (UintVec)_mm512_permutexvar_epi16(_mm512_srli_epi32(line, n * kBits), _mm512_load_si512(kWords<kBits>.entry));
  }
};

template <>
struct PairsOf<8> : Pairs {
  static constexpr int kSteps = 2, kDirect = 12;
  struct Line {
    __m512i low, high;  // bytes of the bfloat16
  };
  static Line open(UintVec line) {
    const __m512i sign = _mm512_set1_epi8(-128), q = _mm512_xor_si512((__m512i)line, sign), size = _mm512_abs_epi8(q);
    const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(kInt8Table.low), size, _mm512_load_si512(kInt8Table.low + 64));
    const __m512i small = _mm512_permutex2var_epi8(_mm512_load_si512(kInt8Table.high), size, _mm512_load_si512(kInt8Table.high + 64));
    // -128 has no entry of its own (128 is looked up as 0, right for the low byte): checkpoints of others hold it.
    const __m512i high = _mm512_mask_mov_epi8(small, _mm512_movepi8_mask(size), _mm512_set1_epi8(0x43));
    return {low, _mm512_ternarylogic_epi32(high, q, sign, 0xf8)};  // high | (q & sign)
  }
  static UintVec numbers(Line line, int n) {  // the even bytes of a lane are inputs 0 and 1, the odd ones 2 and 3
    const __m512i even = _mm512_set1_epi16(0x00ff);
    if (n == 0) return (UintVec)_mm512_ternarylogic_epi32(even, line.low, _mm512_slli_epi16(line.high, 8), 0xca);
    return (UintVec)_mm512_ternarylogic_epi32(even, _mm512_srli_epi16(line.low, 8), line.high, 0xca);
  }
};

struct PairsOfE4M3 : PairsOf<8> {
  static Line open(UintVec line) {  // the look-up leaves the signs out
    const __m512i x = (__m512i)line;
    const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(kFp8Table.low), x, _mm512_load_si512(kFp8Table.low + 64));
    const __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(kFp8Table.high), x, _mm512_load_si512(kFp8Table.high + 64));
    return {low, _mm512_ternarylogic_epi32(high, x, _mm512_set1_epi8(-128), 0xf8)};
  }
};

#endif

template <int kBits>
struct Quads {
  typedef IntVec Sum;
  typedef UintVec Line;
  static constexpr int kSteps = 8 / kBits, kDirect = kMaxTokens;
  static Line open(UintVec line) { return line; }
  static UintVec numbers(Line line, int n) {
    if (kBits == 8) return line;
    return (line >> (kBits * n)) & (kBits == 4 ? 0x0f0f0f0fu : 0x03030303u);
  }
#if defined(__AVX512VNNI__)
  typedef __m512i Step;
  static Step step(uint32_t x) { return _mm512_set1_epi32(x); }
  static Sum add(Sum sum, UintVec numbers, Step x) { return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)numbers, x); }
#elif defined(__AVX2__)
  // Without VNNI by words: the sum of two products of bytes saturates in vpmaddubsw (255 * 127 * 2 > 32767).
  struct Step {
    UintVec low, high;  // bytes 0 and 2, bytes 1 and 3, with their signs
  };
  static Step step(uint32_t x) {
    const auto word = [](uint32_t byte) { return uint32_t(int32_t(int8_t(byte))) & 0xffff; };
    return {splat_word(word(x) | word(x >> 16) << 16), splat_word(word(x >> 8) | word(x >> 24) << 16)};
  }
  static Sum add(Sum sum, UintVec numbers, Step x) {
    return sum + products(numbers & 0x00ff00ffu, x.low) + products((numbers >> 8) & 0x00ff00ffu, x.high);
  }
#if defined(__AVX512F__)
  static IntVec products(UintVec a, UintVec b) { return (IntVec)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
#else
  static IntVec products(UintVec a, UintVec b) { return (IntVec)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
#endif
#else
  typedef uint32_t Step;
  static Step step(uint32_t x) { return x; }
  static Sum add(Sum sum, UintVec numbers, Step x) {
    for (int byte = 0; byte < 4; ++byte)
      sum += (IntVec)((numbers >> (8 * byte)) & 0xffu) * int32_t(int8_t(x >> (8 * byte)));
    return sum;
  }
#endif
};

// Lines as Op multiplies them, Op::kSteps for each. kFetch: what lies 4 KB behind is asked for.
template <class Op, bool kFetch = true>
void turn_lines(const uint8_t* from, int64_t lines, uint8_t* to) {
  for (int64_t i = 0; i < lines; ++i, from += 64, to += Op::kSteps * 64) {
    if (kFetch) __builtin_prefetch(from + 4096, 0, 2);
    for (int v = 0; v < kVecs; ++v) {
      const auto line = Op::open(load_lanes(from + v * sizeof(UintVec)));
#pragma GCC unroll 16
      for (int n = 0; n < Op::kSteps; ++n) {
        const UintVec numbers = Op::numbers(line, n);
        memcpy(to + n * 64 + v * sizeof(UintVec), &numbers, sizeof numbers);
      }
    }
  }
}

}  // namespace
}  // namespace pagoda
