// Which experts of a mixture a token passes, and what their answers count. The contract is that of ops/route.py, roundings included.
#pragma once

#include <cstdint>
#include <string>

#include "dtype.hpp"
#include "isa.hpp"

namespace pagoda {

enum class Router : int32_t { softmax = 0, topk_softmax, sigmoid };

struct RouterRule {
  Router kind = Router::softmax;
  int64_t experts = 0, top_k = 0;
  bool normalize = false;
  float scaling = 1.0f;
  int64_t groups = 1, topk_group = 1;  // sigmoid
};

// Rows of x times rows of the router. It lies in rows, not in panels: few of them, and whoever reads parameters finds it as it came.
struct RouterArgs {
  const void* x = nullptr;       // [tokens][hidden] contiguous
  const void* weight = nullptr;  // [experts][hidden] contiguous
  const void* bias = nullptr;    // [experts], or null
  Dtype dtype = Dtype::f32;      // of all three
  int64_t tokens = 0, hidden = 0, experts = 0;
  bool exact = false;            // logits stay float; else they are rounded to the dtype
  float* logits = nullptr;       // [tokens][experts]
};

// A logit depends on its token and its expert alone: on no other token, and not on the number of threads.
void router_logits(const RouterArgs& args, int num_threads, const std::string& isa);

// ids and weights [tokens][top_k] of logits [tokens][experts], which are overwritten. `correction` [experts] (sigmoid) or null; weights are rounded
// to dtype where they have been probabilities.
void route(const RouterRule& rule, float* logits, const float* correction, int64_t tokens, Dtype dtype, int64_t* ids, float* weights,
           int num_threads, const std::string& isa);

struct GateArgs {  // y *= sigmoid(logit of the token), both rounded to dtype on the way
  void* y = nullptr;  // [tokens][width]
  const float* logits = nullptr;
  int64_t width = 0;
  Dtype dtype = Dtype::f32;
};

void gate(const GateArgs& args, int64_t tokens, int num_threads, const std::string& isa);

// ---- bodies: no threads inside -------------------------------------------------------------------------------------------

PAGODA_DECLARE_BODIES(void, router_rows, (const RouterArgs&, int64_t token, int64_t end_token, int64_t expert, int64_t end_expert))
PAGODA_DECLARE_BODIES(void, softmax_row, (float* x, int64_t width))
PAGODA_DECLARE_BODIES(void, sigmoid_row, (const float* x, float* out, int64_t width))
PAGODA_DECLARE_BODIES(void, gate_rows, (const GateArgs&, int64_t first, int64_t end))

}  // namespace pagoda
