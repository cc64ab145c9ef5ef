// Pages that attention will read soon, asked for while it multiplies.
#pragma once

#include <cstdint>

namespace pagoda {
namespace {

// Asks for one line. g++ 12 drops a loop that does nothing but prefetch where what it counts with is not looked at afterwards: the first
// block of an item, and what found no place beside products, were never asked for (without products 24 layers over 4096 slots then "read"
// 50 MB in 0.18 ms; they take 2.5). It keeps an instruction.
inline void ask_for(const char* line) {
#if defined(PAGODA_X86)
  __asm__ volatile("prefetcht1 %0" : : "m"(*line));
#else
  __builtin_prefetch(line, 0, 2);
#endif
}

// A page's first line is asked for so many pages before the others. Finding where it lies is a walk through tables in memory (a virtual
// machine's host may map 4 KiB at a time whatever the guest does), and 64 lines wait for it. (Two cores that read 50 MB of pages and work 8
// cycles a line: 2.5 ms, 2.2 so, in bursts of 16 lines; one core's attention over them 5.35 and 5.20 ms.)
constexpr int kBeyond = 2;

struct Lines {  // of one page, asked for one by one; the last again and again when there are no more
  const char* at;
  const char* last;
  void next() {
    __builtin_prefetch(at, 0, 2);
    at += at < last ? 64 : 0;
  }
};

// Pages that will be read soon, asked for a cache line at a time, between the multiplications of the block before: a core waits
// for some 48 lines at once, so a burst of a block's 512 stalls it (decode over 4096 tokens: 141 cycles a slot with
// bursts, 120 with lines spread over the products alone).
struct Ahead {
  const char* const* pages = nullptr;  // [count + kBeyond]
  int count = 0;                       // pages not begun
  int64_t page_bytes = 0;
  const char *at = nullptr, *end = nullptr;

  bool more() { return at != end || next_page(); }
  bool next_page() {
    if (count == 0) return false;
    --count, at = *pages++, end = at + page_bytes;
    ask_for(pages[kBeyond - 1]);
    return true;
  }
  // A number that the compiler knows: asked for without a look at each, while the page has so many.
  template <int kNum>
  void lines() {
    if (end - at < 64 * kNum) return lines(kNum);
#pragma GCC unroll 32
    for (int i = 0; i < kNum; ++i) ask_for(at + 64 * i);
    at += 64 * kNum;
  }
  void lines(int num) {
    const char* from;
    for (int64_t here; num > 0 && (here = take(num, &from)) > 0; num -= int(here))
      for (const char* const beyond = from + 64 * here; from < beyond; from += 64) ask_for(from);
  }
  // Up to `most` lines of one page; where there are none, the one at `otherwise`.
  Lines some(int64_t most, const char* otherwise) {
    const char* begin = otherwise;
    const int64_t num = take(most, &begin);
    return {begin, begin + 64 * (num > 0 ? num - 1 : 0)};
  }
  // Up to `most` lines of one page: how many, and where they begin.
  int64_t take(int64_t most, const char** begin) {
    if (!more()) return 0;
    const int64_t left = (end - at + 63) / 64, num = left < most ? left : most;
    *begin = at;
    at = num < left ? at + 64 * num : end;
    return num;
  }
};

}  // namespace
}  // namespace pagoda
