// What a decoder does to single rows (tokens) between its products: norms, rotation, activations, sums. The contracts are
// those of ops/rms_norm.py, layer_norm.py, rotary.py, activation.py and gated_activation.py, roundings included: what the
// reference rounds to the model's dtype on the way is rounded here too, so that bfloat16 results agree to the last bits.
#pragma once

#include <cstdint>
#include <string>

#include "dtype.hpp"
#include "isa.hpp"

namespace pagoda {

struct NormArgs {
  const void* x = nullptr;  // [rows][parts][dim], rows row_stride elements apart, parts (heads of a row) contiguous
  void* out = nullptr;      // likewise, out_stride; may be x
  int64_t rows = 0, parts = 1, dim = 0, row_stride = 0, out_stride = 0;
  Dtype dtype = Dtype::f32;
  const void* weight = nullptr;  // [dim], or [parts][dim] where weight_stride is dim; null: none
  const void* bias = nullptr;    // likewise
  int64_t weight_stride = 0;
  float eps = 0.0f, offset = 0.0f;
  bool centred = false;       // LayerNorm: subtract the mean
  bool round_first = false;   // to the dtype before the weight is applied (RMSNorm of most families), and before the bias
};

struct RotaryArgs {
  void* x = nullptr;  // [rows][heads][dim] turned in place, rows row_stride elements apart
  int64_t rows = 0, heads = 0, dim = 0, row_stride = 0;
  Dtype dtype = Dtype::f32;
  const void* cos = nullptr;  // [positions][pairs]
  const void* sin = nullptr;
  Dtype angle_dtype = Dtype::f32;
  const int64_t* positions = nullptr;  // [rows] row of cos and sin; null: row i for row i
  int64_t pairs = 0;
  bool interleaved = false;
};

enum class Activation : int32_t { silu = 0, gelu, gelu_tanh, quick_gelu, relu, relu2, swiglu_oai };

struct ActivationArgs {
  const void* gate = nullptr;  // [rows][width], rows row_stride elements apart
  const void* up = nullptr;    // likewise, or null: act(gate) alone
  void* out = nullptr;         // [rows][width], out_stride
  int64_t rows = 0, width = 0, row_stride = 0, out_stride = 0;
  Dtype dtype = Dtype::f32;
  Activation kind = Activation::silu;
  float alpha = 1.702f, limit = 7.0f;  // swiglu_oai
};

struct AddArgs {  // x += branch * scale, [count] elements; the product is rounded first where scale is not 1
  void* x = nullptr;
  const void* branch = nullptr;
  // Where a product has left the branch in tiles (packed.hpp, passes_tiles): elements of a row, and from its first 32 to the next 32. Else 0.
  int64_t width = 0, tile = 0;
  int64_t count = 0;
  Dtype dtype = Dtype::f32;
  float scale = 1.0f;
};

void norm(const NormArgs& args, int num_threads, const std::string& isa);
void rotary(const RotaryArgs& args, int num_threads, const std::string& isa);
void activation(const ActivationArgs& args, int num_threads, const std::string& isa);
void add(const AddArgs& args, int num_threads, const std::string& isa);
// Both, row by row, for a norm of what the sum leaves: `norm.rows` rows of one part.
void add_norm(const AddArgs& sum, const NormArgs& norm, int num_threads, const std::string& isa);
void clip(void* x, int64_t rows, int64_t width, int64_t row_stride, Dtype dtype, float bound, const std::string& isa);

// ids[row] = the first place of the largest of `width` logits, or -1 where that is infinite or any is not a number.
void greedy(const float* logits, int64_t rows, int64_t width, int64_t* ids, int num_threads, const std::string& isa);

// ---- bodies: rows (or elements) first..end of the arguments, no threads --------------------------------------------------

PAGODA_DECLARE_BODIES(void, norm_rows, (const NormArgs&, int64_t first, int64_t end))
PAGODA_DECLARE_BODIES(void, rotary_rows, (const RotaryArgs&, int64_t first, int64_t end))
PAGODA_DECLARE_BODIES(void, activation_columns, (const ActivationArgs&, int64_t row, int64_t first, int64_t end))
PAGODA_DECLARE_BODIES(void, add_elements, (const AddArgs&, int64_t first, int64_t end))
PAGODA_DECLARE_BODIES(void, clip_rows, (void* x, int64_t rows, int64_t width, int64_t row_stride, Dtype dtype, float bound))

// Of `count` numbers: the largest and its first place; *best is a NaN where one of them is.
PAGODA_DECLARE_BODIES(void, largest_of, (const float* x, int64_t count, float* best, int64_t* place))

}  // namespace pagoda
