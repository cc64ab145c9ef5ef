// Panels of bf12 (kernels/bf12.py draws them): signs and mantissas as they are, exponents by codes of four bits, opened into lines of bf16's
// panels. A chunk of 192 bytes holds four lines:
//
//   words of byte   0   sign and mantissa of line 0; those of line 1, the word's bytes exchanged
//                  64   the same of lines 2 and 3
//                 128   codes of lines 0, 1, 2 and 3, from the lowest
#pragma once

#include "packed.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

constexpr int64_t kChunkLines = 4, kLineWords = 2 * kPanel;  // words: of 16 bits

// The bytes of each word.
inline UintVec exchanged(UintVec words) { return (words >> 8 & 0x00ff00ffu) | (words << 8 & 0xff00ff00u); }

// Exponents of a panel: code n is n more than the window's, code 0 exponent 0 unless the window says that nothing has it.
class Exponents {
 public:
  Exponents() = default;
#if defined(__AVX512BW__)
  explicit Exponents(int32_t window) {
    const __m512i codes = _mm512_and_si512(_mm512_set_epi16(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9,
                                                            8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi16(15));
    // Looked up by the lowest five bits of a word: those above the code do not matter.
    const __mmask32 some = window & kNoZeros ? ~__mmask32{0} : _mm512_test_epi16_mask(codes, codes);
    entry_ = _mm512_maskz_slli_epi16(some, _mm512_add_epi16(codes, _mm512_set1_epi16(int16_t(window & 0xff))), 7);
  }

  // Four lines of a chunk.
  __attribute__((always_inline)) void open(const uint8_t* chunk, uint8_t* to) const {
    const __m512i own = _mm512_set1_epi16(int16_t(0x807f)), codes = _mm512_loadu_si512(chunk + 128);
    const auto put = [&](int n, __m512i words) __attribute__((always_inline)) {
      const __m512i exponents = _mm512_permutexvar_epi16(n == 0 ? codes : _mm512_srli_epi16(codes, 4 * n), entry_);
      _mm512_storeu_si512(to + 64 * n, _mm512_ternarylogic_epi32(exponents, words, own, 0xf8));  // exponents | (words & own)
    };
    const __m512i first = _mm512_loadu_si512(chunk), second = _mm512_loadu_si512(chunk + 64);
    put(0, first), put(1, exchanged(first)), put(2, second), put(3, exchanged(second));
  }

 private:
  static __m512i exchanged(__m512i words) {
    return _mm512_shuffle_epi8(words, _mm512_broadcast_i32x4(_mm_set_epi8(14, 15, 12, 13, 10, 11, 8, 9, 6, 7, 4, 5, 2, 3, 0, 1)));
  }

  __m512i entry_;
#else
  explicit Exponents(int32_t window) : first_(window & 0xff), always_(UintVec{} + (window & kNoZeros ? 0x00010001u : 0u)) {}

  void open(const uint8_t* chunk, uint8_t* to) const {
    for (int64_t at = 0; at < 64; at += sizeof(UintVec)) {
      const UintVec first = load(chunk + at), second = load(chunk + 64 + at), codes = load(chunk + 128 + at);
      put(first, codes, to + at);
      put(exchanged(first), codes >> 4, to + 64 + at);
      put(second, codes >> 8, to + 128 + at);
      put(exchanged(second), codes >> 12, to + 192 + at);
    }
  }

 private:
  static UintVec load(const uint8_t* p) {
    UintVec x;
    memcpy(&x, p, sizeof x);
    return x;
  }
  void put(UintVec words, UintVec codes, uint8_t* to) const {
    const UintVec code = codes & 0x000f000fu, some = ((code + 0x000f000fu) >> 4 & 0x00010001u) | always_;
    const UintVec line = (words & 0x807f807fu) | (code + some * first_) << 7;
    memcpy(to, &line, sizeof line);
  }

  uint32_t first_;
  UintVec always_;
#endif
};

// The exceptions of a panel from some line on, in order.
class Exceptions {
 public:
  Exceptions() = default;
  Exceptions(const Window* window, int64_t first) : next_(window->exceptions()), end_(next_ + window->count) {
    if (first > 0) skip(first);
    due_ = next_ < end_ ? *next_ : kNone;
  }

  // Those of lines first … first + count, which were opened to `to`; those of lines before have been applied, or skipped. Most tiles have
  // none: a comparison of registers.
  __attribute__((always_inline)) void apply(int64_t first, int64_t count, uint8_t* to) {
    const uint64_t limit = uint64_t((first + count) * kLineWords) << 8;
    if (__builtin_expect(due_ >= limit, 1)) return;
    next_ = put(next_, end_, limit, to - 2 * first * kLineWords);
    due_ = next_ < end_ ? *next_ : kNone;
  }

 private:
  static constexpr uint64_t kNone = ~uint64_t{0};

  // Gives the first that is not below `limit`; line 0 would be opened to `to`.
  static __attribute__((noinline, cold)) const uint32_t* put(const uint32_t* next, const uint32_t* end, uint64_t limit, uint8_t* to) {
    for (; next < end && *next < limit; ++next) {
      uint8_t* const at = to + 2 * (*next >> 8);
      uint16_t bits;
      memcpy(&bits, at, 2);
      bits = uint16_t((bits & 0x807fu) | (*next & 0xffu) << 7);
      memcpy(at, &bits, 2);
    }
    return next;
  }

  // Lines before `first` are passed over.
  void skip(int64_t first) {
    const uint32_t place = uint32_t(first * kLineWords);
    int64_t low = 0, high = end_ - next_;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      (next_[middle] >> 8) < place ? low = middle + 1 : high = middle;
    }
    next_ += low;
  }

  const uint32_t *next_ = nullptr, *end_ = nullptr;
  uint64_t due_ = kNone;  // the next one
};

// Lines of a panel, opened one stretch after the other from line `first` on, which begins a chunk.
class ChunkLines {
 public:
  ChunkLines() = default;
  ChunkLines(const PackedMatrix& m, int64_t panel, int64_t first) : ChunkLines(m, m.panel_bytes(), panel, first) {}
  // panel_bytes: for whoever knows them already, since they are two divisions.
  ChunkLines(const PackedMatrix& m, int64_t panel_bytes, int64_t panel, int64_t first)
      : exponents_(m.windows[panel].window), exceptions_(m.windows + panel, first),
        from_(m.data + panel * panel_bytes + first / kChunkLines * kChunkBytes), line_(first) {}

  // The next `count`, whole chunks but at the panel's end, where up to three more are written. kFetch: what lies 4 KB behind is asked for.
  template <bool kFetch>
  __attribute__((always_inline)) void open(int64_t count, uint8_t* to) {
#pragma GCC unroll 4
    for (int64_t line = 0; line < count; line += kChunkLines, from_ += kChunkBytes) {
      if (kFetch)
        for (int i = 0; i < 3; ++i) __builtin_prefetch(from_ + 4096 + 64 * i, 0, 2);
      exponents_.open(from_, to + line * 64);
    }
    exceptions_.apply(line_, count, to);
    line_ += count;
  }

 private:
  Exponents exponents_;
  Exceptions exceptions_;
  const uint8_t* from_ = nullptr;
  int64_t line_ = 0;
};

}  // namespace
}  // namespace pagoda
