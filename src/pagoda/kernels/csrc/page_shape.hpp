// The inside of a page, as kernels/layout.py draws it: up to four planes, each a row of bytes for every slot.
//
//   page  [ K rows | V rows | K scales | V scales ]        latent pages have no V, exact ones no scales
#pragma once

#include <cstdint>

namespace pagoda {

// How one element is stored. The first three are exact numbers, the others codes (kv/codecs/).
// pages: they were encoded whole (page_numbers.hpp), and their slots have no rows.
enum class Store : int32_t { f32 = 0, bf16 = 1, f16 = 2, int8 = 3, int4 = 4, fp8 = 5, pages = 6 };

struct Plane {
  int64_t at = 0;     // bytes from the page's beginning to slot 0
  int64_t bytes = 0;  // of one slot; 0: the page has no such plane
};

constexpr int64_t kInt4Group = 32;  // columns that share a scale and a minimum
constexpr int64_t kInt4Short = 8;   // a group of at most so many has six bits a number and a scale instead

inline int64_t row_bytes(Store store, int64_t dim) {
  switch (store) {
    case Store::f32: return 4 * dim;
    case Store::bf16:
    case Store::f16: return 2 * dim;
    case Store::int4: {
      const int64_t rest = dim % kInt4Group;
      return dim / kInt4Group * (kInt4Group / 2) + (rest + 1) / 2 + (rest <= kInt4Short ? (rest + 3) / 4 : 0);
    }
    default: return dim;
  }
}

inline int64_t scale_bytes(Store store, int64_t dim) {  // bfloat16 numbers
  if (dim == 0) return 0;
  switch (store) {
    case Store::int8:
    case Store::fp8: return 2;
    case Store::int4: {  // scale and minimum of each group, of a short one the scale alone
      const int64_t rest = dim % kInt4Group;
      return (dim + kInt4Group - 1) / kInt4Group * 4 - (rest > 0 && rest <= kInt4Short ? 2 : 0);
    }
    default: return 0;
  }
}

struct PageShape {
  Store store = Store::f32;
  int64_t page_size = 0, k_dim = 0, v_dim = 0;  // v_dim 0: latent, V is read out of K
  Plane k, v, k_scales, v_scales;
  int64_t page_bytes = 0;

  PageShape() = default;
  PageShape(Store store_, int64_t page_size_, int64_t k_dim_, int64_t v_dim_)
      : store(store_), page_size(page_size_), k_dim(k_dim_), v_dim(v_dim_) {
    const auto place = [&](Plane& plane, int64_t bytes) {
      plane = {page_bytes, bytes};
      page_bytes += page_size * bytes;
    };
    place(k, row_bytes(store, k_dim));
    place(v, row_bytes(store, v_dim));
    place(k_scales, scale_bytes(store, k_dim));
    place(v_scales, scale_bytes(store, v_dim));
  }
};

}  // namespace pagoda
