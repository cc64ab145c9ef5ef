// A panel of bf16 into one of bf12 (kernels/bf12.py), for one instruction set.
#include "bf12.hpp"
#include "bf12_encode.hpp"

namespace pagoda {
namespace {

typedef int16_t WordVec __attribute__((vector_size(4 * kLanes)));  // of 16 bits
constexpr int64_t kWords = 2 * kLanes, kExponents = 256, kCodes = 15, kSampled = 128;

WordVec load_words(const uint16_t* p) {
  WordVec x;
  memcpy(&x, p, sizeof x);
  return x;
}

void store_words(uint8_t* p, WordVec x) { memcpy(p, &x, sizeof x); }

// The most of the sampled weights that `width` exponents from some number on have, and the lowest such number, from 1 on.
struct Best {
  int32_t most, from;
};

Best best_of(const int32_t (&counts)[kExponents], int64_t width) {
  int32_t inside = 0;
  for (int64_t e = 1; e <= width; ++e) inside += counts[e];
  Best best{inside, 1};
  for (int32_t from = 2; from + width <= kExponents; ++from) {
    inside += counts[from + width - 1] - counts[from - 1];
    if (inside > best.most) best = {inside, from};
  }
  return best;
}

int32_t window_of(const uint16_t* lines, int64_t count) {
  int32_t counts[kExponents] = {};
  for (int64_t line = 0, step = count > kSampled ? count / kSampled : 1; line < count; line += step)
    for (int64_t i = 0; i < kLineWords; ++i) ++counts[lines[line * kLineWords + i] >> 7 & 0xff];
  const Best few = best_of(counts, kCodes), all = best_of(counts, kCodes + 1);
  return all.most >= few.most + counts[0] ? all.from | kNoZeros : few.from - 1;
}

bool any(WordVec x) {
  typedef uint64_t Wide __attribute__((vector_size(4 * kLanes)));
  const Wide wide = (Wide)x;
  uint64_t found = 0;
  for (int i = 0; i < kLanes / 2; ++i) found |= wide[i];
  return found != 0;
}

}  // namespace

namespace PAGODA_ISA {

int32_t encode_panel(const uint16_t* lines, int64_t inputs, uint8_t* to, std::vector<uint32_t>& exceptions) {
  const int64_t count = (inputs + 1) / 2;
  const int32_t window = window_of(lines, count), before = window & 0xff, least = window & kNoZeros ? 0 : 1;
  const WordVec zero{}, own = (WordVec)(UintVec{} + 0x807f807fu), base = zero + int16_t(before), may_be_none = zero - int16_t(least);
  for (int64_t line = 0; line < count; line += kChunkLines, lines += kChunkLines * kLineWords, to += kChunkBytes) {
    WordVec odd{};
    for (int64_t at = 0; at < kLineWords; at += kWords) {
      WordVec rest[kChunkLines], codes[kChunkLines];
#pragma GCC unroll 4
      for (int n = 0; n < kChunkLines; ++n) {
        const WordVec words = line + n < count ? load_words(lines + n * kLineWords + at) : zero, exponents = (words >> 7) & int16_t(0xff);
        const WordVec code = exponents - base, none = (exponents == zero) & may_be_none;
        const WordVec other = ~none & ((code < zero + int16_t(least)) | (code > zero + int16_t(kCodes)));
        rest[n] = words & own, codes[n] = code & ~other & ~none, odd |= other;
      }
      store_words(to + 2 * at, rest[0] | (WordVec)exchanged((UintVec)rest[1]));
      store_words(to + 64 + 2 * at, rest[2] | (WordVec)exchanged((UintVec)rest[3]));
      store_words(to + 128 + 2 * at, codes[0] | codes[1] << 4 | codes[2] << 8 | codes[3] << 12);
    }
    if (!any(odd)) continue;
    for (int64_t i = 0; i < kChunkLines * kLineWords && line + i / kLineWords < count; ++i) {
      if (2 * (line + i / kLineWords) + i % 2 >= inputs) continue;
      const int32_t exponent = lines[i] >> 7 & 0xff, code = exponent - before;
      if ((exponent != 0 || least == 0) && (code < least || code > kCodes)) exceptions.push_back(uint32_t(line * kLineWords + i) << 8 | uint32_t(exponent));
    }
  }
  return window;
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
