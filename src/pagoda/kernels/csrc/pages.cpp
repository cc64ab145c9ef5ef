#include "pages.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <unordered_map>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "fetch.hpp"
#include "parallel.hpp"

namespace pagoda {

namespace {

constexpr int64_t kParallelBytes = 1 << 20;  // moved by one core in 100 us; below it, waking another is not worth it
constexpr int64_t kTokensAtOnce = 16;
constexpr int64_t kCopyBytes = 64 << 10;  // of whole pages that a thread takes at a time
// From here on copies go past the caches, where they would not stay: lines that are only overwritten need not be read, a third of what
// a page costs else. A few pages are copied for a sequence that reads them in this very step.
constexpr int64_t kStreamBytes = 4 << 20;
constexpr int64_t kPagesAhead = 4;  // are asked for while one is copied

template <typename Id>
void check(const Id* ids, int64_t count, int64_t limit, const char* what) {
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= limit)
      throw std::out_of_range(std::string(what) + " " + std::to_string(ids[i]) + " of " + std::to_string(limit));
}

void check(const WriteArgs& a, const void* ids, int64_t limit, const char* what) {
  const int64_t count = a.tokens * a.heads;
  if (a.wide_ids) check(static_cast<const int64_t*>(ids), count, limit, what);
  else check(static_cast<const int32_t*>(ids), count, limit, what);
}

// Whether moving in the order given would read a slot after it was written. Sources of one page that follow each other are a
// run; compaction reads a page in one run, so a page read in two is called a danger without a closer look.
template <typename Id>
bool reads_what_it_wrote(const Id* src_pages, const Id* src_slots, const Id* dst_pages, const Id* dst_slots, int64_t count) {
  std::unordered_map<Id, std::pair<int64_t, int64_t>> runs;  // source page -> its moves
  for (int64_t i = 0, next; i < count; i = next) {
    for (next = i + 1; next < count && src_pages[next] == src_pages[i];) ++next;
    if (!runs.emplace(src_pages[i], std::make_pair(i, next)).second) return true;
  }
  std::pair<int64_t, int64_t> run{0, 0};
  for (int64_t i = 0; i < count; ++i) {
    if (i == 0 || dst_pages[i] != dst_pages[i - 1]) {
      const auto found = runs.find(dst_pages[i]);
      run = found == runs.end() ? std::make_pair(int64_t{0}, int64_t{0}) : found->second;
    }
    for (int64_t j = std::max(i + 1, run.first); j < run.second; ++j)
      if (src_slots[j] == dst_slots[i]) return true;
  }
  return false;
}

// Whether any target is also a source: only then must everything be read before the first write. Few are sorted; of many each is
// marked among all pages.
template <typename Id>
bool overlap(const Id* src, const Id* dst, int64_t count, int64_t num_pages) {
  if (count < num_pages / 256) {
    std::vector<Id> sources(src, src + count);
    std::sort(sources.begin(), sources.end());
    return std::any_of(dst, dst + count, [&](Id t) { return std::binary_search(sources.begin(), sources.end(), t); });
  }
  std::vector<bool> read(static_cast<size_t>(num_pages));
  for (int64_t i = 0; i < count; ++i) read[src[i]] = true;
  return std::any_of(dst, dst + count, [&](Id t) { return read[t]; });
}

// What went past the caches is there for whoever is told that it is.
void settle() {
#ifdef __x86_64__
  _mm_sfence();
#endif
}

}  // namespace

void kv_write(const WriteArgs& a, int num_threads, const std::string& isa) {
  const auto body = PAGODA_BODY(isa, write_slots);
  check(a, a.page_ids, a.num_pages, "page");
  check(a, a.slots, a.shape.page_size, "slot");
  const int64_t bytes = a.tokens * a.heads * (a.shape.k_dim + a.shape.v_dim) * size_of(a.dtype);
  if (bytes < kParallelBytes) return body(a, 0, a.tokens);
  parallel_for((a.tokens + kTokensAtOnce - 1) / kTokensAtOnce, num_threads, [&](int64_t i) {
    body(a, i * kTokensAtOnce, std::min(a.tokens, (i + 1) * kTokensAtOnce));
  });
}

template <typename Id>
void kv_compact(char* base, int64_t num_pages, int64_t page_bytes, int64_t page_size, const std::vector<Plane>& planes,
                const Id* src_pages, const Id* src_slots, const Id* dst_pages, const Id* dst_slots, int64_t count) {
  check(src_pages, count, num_pages, "page");
  check(dst_pages, count, num_pages, "page");
  check(src_slots, count, page_size, "slot");
  check(dst_slots, count, page_size, "slot");
  const auto at = [&](const Plane& plane, Id page, Id slot) { return base + page * page_bytes + plane.at + slot * plane.bytes; };
  if (!reads_what_it_wrote(src_pages, src_slots, dst_pages, dst_slots, count)) {
    for (int64_t i = 0; i < count; ++i)
      for (const Plane& plane : planes)
        std::memmove(at(plane, dst_pages[i], dst_slots[i]), at(plane, src_pages[i], src_slots[i]), plane.bytes);
    return;
  }
  int64_t slot_bytes = 0;
  for (const Plane& plane : planes) slot_bytes += plane.bytes;
  std::vector<char> held(static_cast<size_t>(count * slot_bytes));
  char* to = held.data();
  for (int64_t i = 0; i < count; ++i)
    for (const Plane& plane : planes) std::memcpy(to, at(plane, src_pages[i], src_slots[i]), plane.bytes), to += plane.bytes;
  to = held.data();
  for (int64_t i = 0; i < count; ++i)
    for (const Plane& plane : planes) std::memcpy(at(plane, dst_pages[i], dst_slots[i]), to, plane.bytes), to += plane.bytes;
}

template <typename Id>
void copy_pages(char* base, int64_t num_pages, int64_t page_bytes, const Id* src, const Id* dst, int64_t count, int num_threads) {
  check(src, count, num_pages, "page");
  check(dst, count, num_pages, "page");
  if (!overlap(src, dst, count, num_pages)) {
    if (count * page_bytes < kParallelBytes) num_threads = 1;
    const bool even = page_bytes % kStreamStep == 0 && reinterpret_cast<uintptr_t>(base) % kStreamStep == 0;
    const bool streams = even && count * page_bytes >= kStreamBytes;
    const auto stream = PAGODA_BODY("", stream_page);
    const int64_t at_once = std::max<int64_t>(1, kCopyBytes / page_bytes);
    parallel_for((count + at_once - 1) / at_once, num_threads, [&](int64_t item) {
      for (int64_t i = item * at_once; i < std::min(count, (item + 1) * at_once); ++i) {
        if (i + kPagesAhead < count) fetch_second(base + src[i + kPagesAhead] * page_bytes, page_bytes);
        if (streams) stream(base + dst[i] * page_bytes, base + src[i] * page_bytes, page_bytes);
        else std::memcpy(base + dst[i] * page_bytes, base + src[i] * page_bytes, page_bytes);
      }
      if (streams) settle();
    });
    return;
  }
  std::vector<char> held(static_cast<size_t>(count * page_bytes));
  for (int64_t i = 0; i < count; ++i) std::memcpy(held.data() + i * page_bytes, base + src[i] * page_bytes, page_bytes);
  for (int64_t i = 0; i < count; ++i) std::memcpy(base + dst[i] * page_bytes, held.data() + i * page_bytes, page_bytes);
}

#define PAGODA_INSTANTIATE(Id)                                                                                             \
  template void kv_compact<Id>(char*, int64_t, int64_t, int64_t, const std::vector<Plane>&, const Id*, const Id*, const Id*, \
                               const Id*, int64_t);                                                                        \
  template void copy_pages<Id>(char*, int64_t, int64_t, const Id*, const Id*, int64_t, int);
PAGODA_INSTANTIATE(int32_t)
PAGODA_INSTANTIATE(int64_t)

}  // namespace pagoda
