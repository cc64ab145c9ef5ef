// Bytes in and out of pages: writing new tokens, moving slots, copying pages. No arithmetic, so any element type.
#pragma once

#include <cstdint>

namespace pagoda {

// Storage [num_pages, page_bytes]; a page is a block of K slots, then a block of V slots (v_bytes == 0: none).
struct Pages {
  char* base;
  int64_t num_pages;
  int64_t page_size;  // slots
  int64_t k_bytes;    // of one slot
  int64_t v_bytes;

  int64_t page_bytes() const { return page_size * (k_bytes + v_bytes); }
  char* k(int64_t page, int64_t slot) const { return base + page * page_bytes() + slot * k_bytes; }
  char* v(int64_t page, int64_t slot) const { return base + page * page_bytes() + page_size * k_bytes + slot * v_bytes; }
};

// A tensor [tokens, heads, dim] whose last dimension is contiguous; strides in bytes.
struct Rows {
  const char* base;
  int64_t token_stride;
  int64_t head_stride;

  const char* at(int64_t token, int64_t head) const { return base + token * token_stride + head * head_stride; }
};

// All ids and slots are checked before the first byte is written; std::out_of_range names the first bad one.
template <typename Id>
void kv_write(const Pages&, Rows k, Rows v, const Id* page_ids, const Id* slots, int64_t tokens, int64_t heads);
template <typename Id>
void kv_compact(const Pages&, const Id* src_pages, const Id* src_slots, const Id* dst_pages, const Id* dst_slots, int64_t count);
template <typename Id>
void copy_pages(char* base, int64_t num_pages, int64_t page_bytes, const Id* src, const Id* dst, int64_t count);

}  // namespace pagoda
