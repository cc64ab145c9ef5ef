#include "pages.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace pagoda {

namespace {

template <typename Id>
void check(const Id* ids, int64_t count, int64_t limit, const char* what) {
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= limit)
      throw std::out_of_range(std::string(what) + " " + std::to_string(ids[i]) + " of " + std::to_string(limit));
}

// Whether any target is also a source: only then must everything be read before the first write.
template <typename Key>
bool overlap(std::vector<Key> sources, const std::vector<Key>& targets) {
  std::sort(sources.begin(), sources.end());
  return std::any_of(targets.begin(), targets.end(),
                     [&](Key t) { return std::binary_search(sources.begin(), sources.end(), t); });
}

}  // namespace

template <typename Id>
void kv_write(const Pages& pages, Rows k, Rows v, const Id* page_ids, const Id* slots, int64_t tokens, int64_t heads) {
  check(page_ids, tokens * heads, pages.num_pages, "page");
  check(slots, tokens * heads, pages.page_size, "slot");
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < heads; ++h, ++page_ids, ++slots) {
      std::memcpy(pages.k(*page_ids, *slots), k.at(t, h), pages.k_bytes);
      if (pages.v_bytes) std::memcpy(pages.v(*page_ids, *slots), v.at(t, h), pages.v_bytes);
    }
}

template <typename Id>
void kv_compact(const Pages& pages, const Id* src_pages, const Id* src_slots, const Id* dst_pages, const Id* dst_slots,
                int64_t count) {
  check(src_pages, count, pages.num_pages, "page");
  check(dst_pages, count, pages.num_pages, "page");
  check(src_slots, count, pages.page_size, "slot");
  check(dst_slots, count, pages.page_size, "slot");
  const int64_t slot_bytes = pages.k_bytes + pages.v_bytes;
  std::vector<char> held(static_cast<size_t>(count * slot_bytes));  // closing gaps overlaps nearly always: read all first
  char* at = held.data();
  for (int64_t i = 0; i < count; ++i, at += slot_bytes) {
    std::memcpy(at, pages.k(src_pages[i], src_slots[i]), pages.k_bytes);
    if (pages.v_bytes) std::memcpy(at + pages.k_bytes, pages.v(src_pages[i], src_slots[i]), pages.v_bytes);
  }
  at = held.data();
  for (int64_t i = 0; i < count; ++i, at += slot_bytes) {
    std::memcpy(pages.k(dst_pages[i], dst_slots[i]), at, pages.k_bytes);
    if (pages.v_bytes) std::memcpy(pages.v(dst_pages[i], dst_slots[i]), at + pages.k_bytes, pages.v_bytes);
  }
}

template <typename Id>
void copy_pages(char* base, int64_t num_pages, int64_t page_bytes, const Id* src, const Id* dst, int64_t count) {
  check(src, count, num_pages, "page");
  check(dst, count, num_pages, "page");
  const std::vector<Id> sources(src, src + count), targets(dst, dst + count);
  if (!overlap(sources, targets)) {
    for (int64_t i = 0; i < count; ++i) std::memcpy(base + dst[i] * page_bytes, base + src[i] * page_bytes, page_bytes);
    return;
  }
  std::vector<char> held(static_cast<size_t>(count * page_bytes));
  for (int64_t i = 0; i < count; ++i) std::memcpy(held.data() + i * page_bytes, base + src[i] * page_bytes, page_bytes);
  for (int64_t i = 0; i < count; ++i) std::memcpy(base + dst[i] * page_bytes, held.data() + i * page_bytes, page_bytes);
}

#define PAGODA_INSTANTIATE(Id)                                                                                        \
  template void kv_write<Id>(const Pages&, Rows, Rows, const Id*, const Id*, int64_t, int64_t);                       \
  template void kv_compact<Id>(const Pages&, const Id*, const Id*, const Id*, const Id*, int64_t);                    \
  template void copy_pages<Id>(char*, int64_t, int64_t, const Id*, const Id*, int64_t);
PAGODA_INSTANTIATE(int32_t)
PAGODA_INSTANTIATE(int64_t)

}  // namespace pagoda
