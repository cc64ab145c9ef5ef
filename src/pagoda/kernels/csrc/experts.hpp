// The experts of a mixture: tokens sorted by expert, multiplied a stretch of experts at a time, their answers weighed and summed up in the order of
// the experts' numbers. The contract is that of ops/moe_dispatch.py; `packed_dispatch` (models/layers/experts.py) is the same op by op.
//
//   rows of the stretch   x[rows] ──gate, up──► inner ──activation──► acted ──down──► results ──weight──► out[token] +=
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "packed.hpp"
#include "rows.hpp"

namespace pagoda {

struct Expert {
  PackedMatrix gate_up, down;
  bool gate_up_dynamic = false, down_dynamic = false;
  int32_t alike = 0;  // experts of one number have matrices of one format, which are multiplied together
};

struct Experts {
  std::vector<Expert> each;  // by number
  const void *gate_up_bias = nullptr, *down_bias = nullptr;  // [experts][2 inner], [experts][hidden], or null
  int64_t hidden = 0, inner = 0;
  int32_t num_alike = 1;
  Activation kind = Activation::silu;
  float alpha = 0.0f, limit = 0.0f;
};

// What a call needs beside its scratch: kept, so that only a larger step than all before allocates.
struct ExpertsMemory {
  struct Use {  // of an expert: tokens first … first + count, sorted by expert; rows from `row` on of a stretch
    int64_t expert = 0, first = 0, count = 0, row = 0;
  };
  std::vector<Use> uses;
  std::vector<int64_t> starts;  // by expert
  std::vector<int32_t> tokens, rows;
  std::vector<float> weights;
  GroupedLinearArgs product;
};

struct ExpertsArgs {
  const Experts* experts = nullptr;
  const void* x = nullptr;  // [tokens][hidden] contiguous
  void* out = nullptr;      // likewise; not x
  Dtype dtype = Dtype::f32;
  int64_t tokens = 0, top_k = 0;
  const int64_t* ids = nullptr;    // [tokens][top_k]; a token's all different
  const float* weights = nullptr;  // [tokens][top_k]
  void* scratch = nullptr;         // of experts_scratch_bytes
};

int64_t experts_scratch_bytes(const Experts& experts, int64_t tokens, int64_t top_k, Dtype dtype);

// Throws std::out_of_range for an id that is no expert's.
void run_experts(const ExpertsArgs& args, ExpertsMemory& memory, int num_threads, const std::string& isa);

struct WeighArgs {  // out[tokens[row]] += results[row] * weights[row], both rounded to dtype, row after row
  const void* results = nullptr;  // [rows][width]
  void* out = nullptr;            // [tokens][width]
  const int32_t* tokens = nullptr;
  const float* weights = nullptr;
  int64_t width = 0;
  Dtype dtype = Dtype::f32;
};

PAGODA_DECLARE_BODIES(void, weigh_columns, (const WeighArgs&, int64_t rows, int64_t first_column, int64_t end_column))

}  // namespace pagoda
