// Bytes in and out of pages: writing new tokens, moving slots, copying pages.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dtype.hpp"
#include "isa.hpp"
#include "page_shape.hpp"

namespace pagoda {

// A tensor [tokens, heads, dim] whose last dimension is contiguous; strides in bytes.
struct Rows {
  const char* base;
  int64_t token_stride;
  int64_t head_stride;

  const char* at(int64_t token, int64_t head) const { return base + token * token_stride + head * head_stride; }
};

struct WriteArgs {
  char* pages = nullptr;
  int64_t num_pages = 0;
  PageShape shape;
  Rows k{}, v{};               // of `dtype`; v is not read for latent pages
  Dtype dtype = Dtype::f32;
  const void *page_ids = nullptr, *slots = nullptr;  // [tokens, heads], int32 or int64
  bool wide_ids = false;
  int64_t tokens = 0, heads = 0;

  int64_t id(const void* ids, int64_t i) const {
    return wide_ids ? static_cast<const int64_t*>(ids)[i] : static_cast<const int32_t*>(ids)[i];
  }
};

// Slot slots[t, h] of page page_ids[t, h] becomes k[t, h] and v[t, h], as the pages store numbers: copied, rounded or encoded.
// All functions check every id and slot before the first byte is written; std::out_of_range names the first bad one.
void kv_write(const WriteArgs& args, int num_threads, const std::string& isa);

// Slot dst becomes what slot src was before the call, in each of `planes`; targets must differ from each other.
template <typename Id>
void kv_compact(char* base, int64_t num_pages, int64_t page_bytes, int64_t page_size, const std::vector<Plane>& planes,
                const Id* src_pages, const Id* src_slots, const Id* dst_pages, const Id* dst_slots, int64_t count);
template <typename Id>
void copy_pages(char* base, int64_t num_pages, int64_t page_bytes, const Id* src, const Id* dst, int64_t count, int num_threads);

// A copy past the caches (until a fence), of a page whose address and size are multiples of kStreamStep.
constexpr int64_t kStreamStep = 64;
PAGODA_DECLARE_BODIES(void, stream_page, (char* to, const char* from, int64_t bytes))

// Tokens first..last of kv_write; ids are checked already.
PAGODA_DECLARE_BODIES(void, write_slots, (const WriteArgs&, int64_t first, int64_t last))

}  // namespace pagoda
