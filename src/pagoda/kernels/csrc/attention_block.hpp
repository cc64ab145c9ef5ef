// One block of slots as the products take it: where slots lie, their scales, and the two matrices that many rows multiply
// (attention_pack.hpp). And the memory of all of it: one buffer a thread, kept.
#pragma once

#include "attention_math.hpp"
#include "attention_pack.hpp"
#include "attention_slots.hpp"
#include "attention_byte_weights.hpp"
#include "attention_group_scales.hpp"

#if PAGODA_AMX
#define PAGODA_VECTORS avx512bf16  // whose bodies serve what is no product of tiles
#else
#define PAGODA_VECTORS PAGODA_ISA
#endif

namespace pagoda {
namespace {

constexpr int64_t kTileWords = 16;  // of a row of a tile (AMX)

struct Scratch {
  float* data = nullptr;
  int64_t size = 0;
  ~Scratch() { __builtin_free(data); }
  float* need(int64_t floats) {
    if (floats > size) {
      __builtin_free(data);
      data = nullptr, size = 0;
      void* at = nullptr;
      if (posix_memalign(&at, 64, static_cast<size_t>(floats) * sizeof(float)) != 0) __builtin_trap();
      data = static_cast<float*>(at);
      size = floats;
    }
    return data;
  }
};

thread_local Scratch scratch;

template <typename Math>
struct Block {
  using Number = typename Math::Number;  // float, or bfloat16 as uint16_t

  const AttentionArgs& a;
  int64_t k_words, v_stride;
  Number *wide_k, *wide_v;     // rows of this block as numbers, where pages hold something else
  int64_t wide_k_row, wide_v_row;
  float *keys, *values;        // see attention_pack.hpp
  float *k_scales, *v_scales;  // [kScales], or null where rows hold numbers
  float* k_units;              // [kScales] what products are multiplied with where scales are all; as k_scales else
  GroupScales groups;          // of four-bit codes that are multiplied as they are: attention_nibbles.hpp
  char* tail;                  // of the last eight of slots
  Number* page;                // one whole page, of encoded ones
  int count = 0;
  static constexpr int kScales = kBlock + kLanes;  // a register beyond the last slot's may be written

  static int64_t words_of(int64_t columns) { return (columns + Math::kPerWord - 1) / Math::kPerWord; }
  static int64_t key_words(const AttentionArgs& a) {  // of a query, and rows of `keys`; those behind the last of K are zeros
    const int64_t words = words_of(a.shape.k_dim);
    return PAGODA_AMX ? (words + kTileWords - 1) / kTileWords * kTileWords : words;
  }
  static int64_t wide_row(int64_t dim) { return (dim + 63) / 64 * 64; }

  static int64_t floats(const AttentionArgs& a) {
    const int64_t wide = Math::native(a.shape) ? 0 : kBlock * (wide_row(a.shape.k_dim) + wide_row(a.v_dim));
    const int64_t page = a.coded ? a.shape.page_size * (wide_row(a.shape.k_dim) + wide_row(a.v_dim)) : 0;
    const int64_t grouped = a.shape.store == Store::int4 ? GroupScales::floats(a.shape, kScales) : 0;
    return key_words(a) * kBlock + words_of(kBlock) * padded(a.v_dim) + wide + page + 3 * kScales + grouped +
           Slots::tail_bytes(a.shape) / 4 + 4 * 16;
  }

  Block(const AttentionArgs& args, float* at) : a(args), k_words(words_of(args.shape.k_dim)), v_stride(padded(args.v_dim)) {
    wide_k_row = wide_row(a.shape.k_dim), wide_v_row = wide_row(a.v_dim);
    keys = at, at += key_words(a) * kBlock;
    memset(keys + k_words * kBlock, 0, sizeof(float) * (key_words(a) - k_words) * kBlock);
    values = at, at += words_of(kBlock) * v_stride;
    const bool scaled = a.shape.store == Store::int8 || a.shape.store == Store::fp8;
    k_scales = scaled ? at : nullptr, v_scales = scaled ? at + kScales : nullptr;
    k_units = scaled ? at + 2 * kScales : nullptr;
    at += 3 * kScales;
    if (a.shape.store == Store::int4) groups = GroupScales(a.shape, kScales, at), at += GroupScales::floats(a.shape, kScales);
    tail = (char*)at;
    wide_k = (Number*)(tail + (Slots::tail_bytes(a.shape) + 63) / 64 * 64), wide_v = wide_k + kBlock * wide_k_row;
    page = wide_v + kBlock * wide_v_row;
  }

  // Slots that products read where they lie.
  void open_eights(const PageRow& pages, Slots& slots) {
    count = slots.count;
    slots.pad_eights(a.shape, tail);
#if PAGODA_DPBF16
    if (a.shape.store == Store::int4) {
      groups.clear_last(padded(count) - kLanes);
      return pages.each_page(slots, [&](const char* page, int64_t inside, int64_t at, int64_t here) { groups.read(a.shape, page, inside, at, here); });
    }
    if (!k_scales) return;
    const Plane &of_k = a.shape.k_scales, &of_v = a.shape.v.bytes ? a.shape.v_scales : a.shape.k_scales;
    const int64_t last = padded(count) - kLanes;  // of pages that begin within a register, the last may leave some of it
    store(k_scales + last, Vec{}), store(v_scales + last, Vec{});
    pages.each_page(slots, [&](const char* page, int64_t inside, int64_t at, int64_t here) {
      widen_scales((const uint16_t*)(page + of_k.at) + inside, here, k_scales + at);
      widen_scales((const uint16_t*)(page + of_v.at) + inside, here, v_scales + at);
    });
#else
    (void)pages;
#endif
  }

  // Rows of numbers for all slots, which `slots` then names one by one and by eights; scales of codes beside them.
  void widen(const PageRow& pages, Slots& slots, bool with_values, Ahead& ahead) {
    count = slots.count;
    if (!Math::native(a.shape)) {
      const bool own_v = with_values && a.shape.v.bytes;
      const auto fetch = [&](int) { ahead.lines(1); };
      if (a.coded) decode(pages, slots, own_v, ahead);
      else widen_rows(a.shape.store, slots.k, slots.k_scales, count, a.shape.k_dim, wide_k, wide_k_row, fetch);
      if (own_v && !a.coded) widen_rows(a.shape.store, slots.v, slots.v_scales, count, a.v_dim, wide_v, wide_v_row, fetch);
      if (Math::kPerWord == 2 && a.shape.k_dim % 2)
        for (int i = 0; i < count; ++i) wide_k[i * wide_k_row + a.shape.k_dim] = 0;
      name_wide(slots.k, slots.k8, wide_k, wide_k_row);
      if (own_v) name_wide(slots.v, slots.v8, wide_v, wide_v_row);
      else name_wide(slots.v, slots.v8, wide_k, wide_k_row);
    }
    if (k_scales)
      for (int i = 0; i < padded(count); ++i) {
        const int slot = i < count ? i : count - 1;
        k_scales[i] = pagoda::widen(*(const uint16_t*)slots.k_scales[slot]);
        v_scales[i] = pagoda::widen(*(const uint16_t*)slots.v_scales[slot]);
        // Not 0, so that what is masked stays so: keys of scale 0 have no code but 0.
        k_units[i] = a.scale * kLog2E * (k_scales[i] == 0.0f ? 1.0f : k_scales[i]);
      }
    slots.pad();
  }

  // Encoded pages become rows of numbers, and raw slots do.
  void decode(const PageRow& pages, const Slots& slots, bool with_values, Ahead& ahead) {
    const int64_t size = a.shape.page_size;
    const int lines = int(a.shape.page_bytes / 128) + 1;  // of the next block's pages, beside each half of one
    for (int64_t at = 0, number = slots.first / size, n = 0; at < slots.encoded; ++n, ++number) {
      const int64_t inside = (slots.first + at) % size, left = slots.encoded - at, here = size - inside < left ? size - inside : left;
      const PageRow::Place place{pages, number};
      const auto side = [&](const PageSide& from, Number* rows, int64_t row) {
        Number* const to = rows + at * row;
        const bool whole = here == size;
        PAGODA_VECTORS::run_page_numbers({&from, (const uint8_t*)slots.pages[n], pages.head, size, whole ? to : page, row,
                                          Math::kPerWord == 2, &place, &PageRow::Place::find});
        if (!whole) memcpy(to, page + inside * row, here * row * sizeof(Number));
        ahead.lines(lines);
      };
      side(a.coded->k, wide_k, wide_k_row);
      if (with_values) side(a.coded->v, wide_v, wide_v_row);
      at += here;
    }
    const auto raw = [&](const char* const* rows, int64_t dim, Number* to, int64_t row) {
      const Store store = a.coded->raw_store;
      widen_rows(store, rows + slots.encoded, rows + slots.encoded, slots.count - slots.encoded, dim, to + slots.encoded * row, row, [](int) {});
    };
    raw(slots.k, a.shape.k_dim, wide_k, wide_k_row);
    if (with_values) raw(slots.v, a.v_dim, wide_v, wide_v_row);
  }

  // Rows behind the last slot's, up to a full register, become zeros.
  void name_wide(const char** each, Eights& eights, Number* rows, int64_t row) const {
    memset(rows + count * row, 0, (padded(count) - count) * row * sizeof(Number));
    for (int i = 0; i < count; ++i) each[i] = (const char*)(rows + i * row);
    for (int64_t i = 0; i < padded(count); i += kEight) eights.at[i / kEight] = (const char*)(rows + i * row);
    eights.stride = row * int64_t{sizeof(Number)};
  }

  void pack(const Slots& slots, bool with_values, Ahead& ahead) {
    for (int i = 0; i < count; i += kLanes) {
      ahead.lines(kLanes);
      pack_keys(slots.k + i, k_words, keys + i, kBlock);
    }
    if (!with_values) return;
    for (int i = 0; i < count; i += Math::kPerWord) {
      ahead.lines(Math::kPerWord / 2);
      Math::pack_values(slots.v + i, a.v_dim, v_stride, values + i / Math::kPerWord * v_stride);
    }
    if (PAGODA_AMX && count < kBlock) {  // up to a whole tile: what is nothing times 0 must be a number
      const int64_t words = words_of(count);
      memset(values + words * v_stride, 0, sizeof(float) * (words_of(kBlock) - words) * v_stride);
    }
  }
};

}  // namespace
}  // namespace pagoda
