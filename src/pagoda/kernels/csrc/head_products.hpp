// Products of each head with a small matrix of its own (latent attention's up-projections). The contract is that of ops/head_products.py.
#pragma once

#include <cstdint>
#include <string>

#include "dtype.hpp"
#include "isa.hpp"

namespace pagoda {

struct HeadProductArgs {
  const void* x = nullptr;  // [tokens][heads][inputs], strides in elements
  int64_t x_token = 0, x_head = 0;
  void* out = nullptr;  // [tokens][heads][outputs]
  int64_t out_token = 0, out_head = 0;
  const void* weight = nullptr;  // [heads][rows][columns] contiguous
  int64_t tokens = 0, heads = 0, rows = 0, columns = 0;
  bool down = false;  // sums run down the columns: as many inputs as rows; else along the rows: as many as columns
  Dtype dtype = Dtype::f32;
};

// A result depends on its token alone: on no other token, and not on the number of threads.
void head_products(const HeadProductArgs& args, int num_threads, const std::string& isa);

PAGODA_DECLARE_BODIES(void, head_product, (const HeadProductArgs&, int64_t head, int64_t token, int64_t end_token))

}  // namespace pagoda
