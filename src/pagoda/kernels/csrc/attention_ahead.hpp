// Pages that attention will read soon, asked for while it multiplies.
#pragma once

#include <cstdint>

#include "page_shape.hpp"

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

struct Lines {  // of one page, asked for one by one; the last again and again when there are no more
  const char* at;
  const char* last;
  void next() {
    __builtin_prefetch(at, 0, 2);
    at += at < last ? 64 : 0;
  }
};

// Some of the lines of `Ahead`, asked for one by one; the same again and again when there are no more. Loops of products take it by reference and
// copy it: five words written to the stack one by one and read there together have to wait for the cache (a twentieth of attention of many rows).
struct LinesInTurn {
  const char* const* page;
  const char* const* first;
  const char* const* end;
  int64_t at, step;
  void next() {
    __builtin_prefetch(*page + at, 0, 2);
    const bool over = ++page == end;
    at += over ? step : 0;
    page = over ? first : page;
  }
  void next_four() {
    if (end - page < 4) {
#pragma GCC unroll 1
      for (int i = 0; i < 4; ++i) next();
      return;
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) __builtin_prefetch(page[i] + at, 0, 2);
    const bool over = (page += 4) == end;
    at += over ? step : 0;
    page = over ? first : page;
  }
};

// Pages that will be read soon, asked for a cache line at a time, between the multiplications of the block before: a core waits
// for some 48 lines at once, so a burst of a block's 512 stalls it (decode over 4096 tokens: 141 cycles a slot with
// bursts, 120 with lines spread over the products alone).
//
// All pages' first lines come first, then their second ones, and so on: the second cache sees each page as a stream and goes ahead of it,
// which it does only for what is asked for line after line, and not in haste. (A program that reads int8 pages and works 145 ns on each: 230 ns page after
// page, 195 so, 245 to 270 with the lines in another order.)
struct Ahead {
  const char* const* pages = nullptr;  // [count]
  int count = 0;
  int64_t left = 0;  // lines
  int page = 0;      // of the next one, and where in it
  int64_t at = 0;
  const char* nothing = nullptr;

  Ahead() = default;
  // Scales that are a page's last line are asked for at once: a block looks at them before anything else, and asked for as the last they had just been asked for then.
  Ahead(const char* const* pages_, int count_, const PageShape& shape) : pages(pages_), count(count_) {
    const int64_t num = (shape.page_bytes + 63) / 64, scales = shape.k_scales.bytes && shape.k_scales.at / 64 == num - 1 ? 1 : 0;
    at = 64 * (num - 1), left = count * scales;
    lines(left);
    page = 0, at = 0, left = count * (num - scales);
  }

  // A number that the compiler knows: asked for without a look at each, while there are so many.
  template <int kNum>
  void lines() {
    if (left < kNum) return lines(kNum);
    left -= kNum;
#pragma GCC unroll 32
    for (int i = 0; i < kNum; ++i) one();
  }
  void lines(int64_t num) {
    if (num > left) num = left;
    left -= num;
    for (; num > 0; --num) one();
  }
  // The next `num`, or where fewer are left none of them but the one at `otherwise`.
  LinesInTurn some(int64_t num, const char* otherwise) {
    nothing = otherwise;
    if (left < num) return {&nothing, &nothing, &nothing + 1, 0, 0};
    const LinesInTurn found{pages + page, pages, pages + count, at, 64};
    left -= num;
    const unsigned beyond = unsigned(page + num), pages_of = unsigned(count);
    page = int(beyond % pages_of), at += int64_t{beyond / pages_of} * 64;
    return found;
  }

 private:
  void one() {
    ask_for(pages[page] + at);
    if (++page == count) page = 0, at += 64;
  }
};

}  // namespace
}  // namespace pagoda
