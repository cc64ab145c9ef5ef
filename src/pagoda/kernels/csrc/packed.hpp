// Products with packed weights. The layout is drawn in kernels/packed.py, the contract is that of ops/packed_linear.py.
//
// A product is made of two steps, so that matrices that multiply the same tokens share the first, and so that a fused step
// can give slices of rows of several matrices to its threads:
//
//   Tokens x = ...;  prepare_tokens(...)          once: cast, copy or quantize the tokens
//   packed_rows({matrix, x, ...}, first, end)     for slices of rows that start at whole panels; no threads inside
//
// `packed_linear` does both with all threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dtype.hpp"
#include "isa.hpp"

namespace pagoda {

constexpr int64_t kPanel = 16;  // rows
constexpr int64_t kTileColumns = 32;  // of bfloat16 in a row of a tile, and the most tokens that are passed on in tiles (passes_tiles)

enum class Format : int32_t { fp32 = 0, bf16, int8, int4, ternary, int5, fp16, fp8, nf4, bf12, int3, int2, dgq, bitstack };

// What the inner loop multiplies: float by float, pairs of bfloat16, or quads of int8 (dynamic quantization).
enum class Operand : int32_t { f32 = 0, bf16, s8 };

// Where input n of a block lies in its lane, whose fields have so many bits: even inputs in the lower half (kernels/packed.py).
constexpr int shift_of(int n, int bits) { return n / 2 * bits + n % 2 * 16; }
// 0 as it is stored.
constexpr int64_t middle_of(int bits) { return bits == 2 ? 1 : int64_t{1} << (bits - 1); }

constexpr int64_t kChunkBytes = 192;  // of bf12: four lines
constexpr int32_t kNoZeros = 256;

// What bf12 knows of a panel (kernels/bf12.py). window: the exponent of code n less n; + kNoZeros where that holds for code 0 as well.
struct Window {
  int32_t window, begin, count;

  const uint32_t* exceptions() const { return reinterpret_cast<const uint32_t*>(this) + begin; }
};

struct PackedMatrix {
  Format format = Format::fp32;
  int64_t outputs = 0, inputs = 0;
  int64_t group = 0;               // inputs that share a scale; 0: a scale per row (or none)
  const uint8_t* data = nullptr;   // [panels][blocks][16][4 bytes]; bf12: [panels][chunks][192]; of int3 and those behind it a table (packed_open.hpp)
  const void* scales = nullptr;    // int8, fp8, ternary: float [panels][16]; int4, int5, nf4: [panels][groups][16]
  const uint8_t* zeros = nullptr;  // int4, int5 with zero points: [panels][groups][16]
  bool wide_scales = true;         // float scales, else bfloat16
  const Window* windows = nullptr;  // bf12: [panels]

  int64_t bits() const {
    constexpr int kBits[] = {32, 16, 8, 4, 2, 5, 16, 8, 4, 16};  // by format
    return opened() ? 32 : kBits[static_cast<int>(format)];
  }
  bool opened() const { return format >= Format::int3; }  // into floats, a piece at a time, before they are multiplied
  const int64_t* table() const { return reinterpret_cast<const int64_t*>(data); }
  int64_t low_rank() const { return format == Format::int3 || format == Format::int2 ? table()[0] : 0; }  // of what is added to the codes
  int64_t block() const { return 32 / bits(); }  // inputs in 32 bits of a lane
  int64_t middle() const { return middle_of(int(bits())); }  // of integers
  int64_t blocks() const { return (inputs + block() - 1) / block(); }
  int64_t panels() const { return (outputs + kPanel - 1) / kPanel; }
  int64_t groups() const { return group == 0 ? 1 : (inputs + group - 1) / group; }
  int64_t panel_bytes() const { return format == Format::bf12 ? (blocks() + 3) / 4 * kChunkBytes : blocks() * kPanel * 4; }
};

// Matrix e of a stack of experts.
PackedMatrix expert_of(const PackedMatrix& stack, int64_t e);

// Tokens as packed_rows reads them: rows of 32-bit steps (a float, a pair of bfloat16, a quad of int8), zero behind `inputs`.
struct Tokens {
  Operand operand = Operand::f32;
  int64_t count = 0;
  int64_t steps = 0;               // 32-bit words between tokens
  int64_t tile_steps = 16;         // words between sixteen of a token and the next sixteen: more where tokens lie in tiles (passes_tiles)
  const uint32_t* data = nullptr;
  const float* scales = nullptr;   // s8: [count][groups]
  // [count][groups], bits of float: the sums of the tokens, where there are zero points; of int32 for s8: what makes up for the
  // stored offset, -offset times the sum (with zero points minus the sum).
  const uint32_t* sums = nullptr;
  const float* low = nullptr;      // [count][rank]: tokens times the matrix's right, where it has one
  int64_t rank = 0;

  Tokens from(int64_t first, int64_t groups) const {
    Tokens t = *this;
    t.count -= first;
    t.data += first * steps;
    if (scales) t.scales += first * groups;
    if (sums) t.sums += first * groups;
    if (low) t.low += first * rank;
    return t;
  }
};

// The operand for this matrix: s8 when dynamic, bf16 for bfloat16 tokens where the instruction set multiplies pairs and bfloat16
// holds every weight exactly, else f32. Where pairs are slow (isa.hpp), bf16, bf12 and int8 are f32 as well; a code of fp8 takes longer to become
// a float (one token 1.2 times as long), those of groups were not measured.
Operand operand_of(const PackedMatrix& matrix, Dtype tokens, bool dynamic, const std::string& isa);

// Whether x [count][inputs], rows `stride` elements apart, can be read where it lies.
bool usable_in_place(const PackedMatrix& matrix, Operand operand, Dtype dtype, int64_t stride, int64_t count);

// Bytes that prepared tokens take (data, scales and sums together), and where they lie in a buffer of that size.
int64_t prepared_bytes(const PackedMatrix& matrix, Operand operand, int64_t count);
Tokens prepared_in(const PackedMatrix& matrix, Operand operand, int64_t count, void* buffer);

struct PrepareArgs {
  const PackedMatrix* matrix = nullptr;  // any matrix with the same format, inputs and group, and itself where it has a low rank
  const void* x = nullptr;               // [count][inputs], rows `stride` elements apart
  Dtype dtype = Dtype::f32;
  int64_t stride = 0;
  int64_t tile = 0;                      // where x lies in tiles (passes_tiles): elements between 32 columns and the next 32
  Tokens out;                            // from prepared_in
};

// Two panels that the thread will read after a slice, or none.
struct Following {
  const uint8_t* data = nullptr;
  int64_t panel_bytes = 0, apart = 0;  // apart: bytes between them
};

// More rows behind those of a slice, for a body that goes on with them: where they end, and what the thread will read then.
struct Further {
  int64_t (*take)(void* share, Following* next) = nullptr;
  void* share = nullptr;
};

// The largest result of a token in each lane of panels so far and its row, the first of equals.
struct Largest {
  float top[kPanel];
  int32_t row[kPanel];
  bool none;  // one of the results is no number
};

struct LinearSlice {
  PackedMatrix matrix;
  Tokens x;
  const void* bias = nullptr;  // [outputs] in the dtype of the result, or null
  void* out = nullptr;         // [count][rows()], out_stride elements apart
  Dtype dtype = Dtype::f32;
  int64_t out_stride = 0;
  int64_t out_tile = 0;  // where results lie in tiles (passes_tiles): elements between 32 columns and the next 32
  bool wide = false;  // out is float, of numbers rounded to dtype
  bool gated = false;  // out is SiLU of the matrix's first rows times the others, both rounded before (`ends_gated`)
  Largest* largest = nullptr;  // [count]: results are compared with these and not kept (by packed_tiles alone)
  Following next;
  Further further;  // or none

  int64_t rows() const { return gated ? matrix.outputs / 2 : matrix.outputs; }  // of the result
};

// Whether the bodies can end a product with gated SiLU: tokens of bfloat16, by tiles any number of them, by vectors so many that panels are
// multiplied in pairs, and weights that are multiplied as they are stored. The bits are those of the product and the activation after it.
bool ends_gated(const PackedMatrix& matrix, Operand operand, Dtype dtype, int64_t count, const std::string& isa);

// Whether a gated product of so many tokens of bfloat16 passes its results to the next product in tiles, [columns / 32][tokens][32]: a pair of
// panels writes 1 KB in a row then, not half a line in each of 32 rows that other cores have read (32 tokens, all products of the 0.5B shape on
// two cores: 36.4 ms, in tiles 35.5).
bool passes_tiles(const PackedMatrix& gated, bool dynamic, const PackedMatrix& next, bool next_dynamic, int64_t count, const std::string& isa);

// Whether a product of so many tokens of bfloat16 can leave its results so for the sum that reads them (AddArgs::tile). Written to rows, o and down of
// the 1B shape take 32 tokens 1.8 ms of a step more.
bool leaves_tiles(const PackedMatrix& matrix, bool dynamic, int64_t count, const std::string& isa);

// ---- bodies, no threads inside ---------------------------------------------------------------------------------------------

PAGODA_DECLARE_BODIES(void, prepare_tokens, (const PrepareArgs&, int64_t first_token, int64_t end_token))
// Of tokens that lie in tiles, at most kTileColumns, only their columns first..end, whole tiles, so that whoever made them makes them ready: the
// largest size of each token's, and then, with that of all columns, their integers and a part of the tokens' sums.
PAGODA_DECLARE_BODIES(void, size_tiles, (const PrepareArgs&, int64_t first, int64_t end, float* sizes))
PAGODA_DECLARE_BODIES(void, quantize_tiles, (const PrepareArgs&, int64_t first, int64_t end, const float* sizes, uint32_t* sums))
// Rows first..end of the result; first is a multiple of kPanel. A number of the result depends on its token and its row alone:
// neither on the other tokens nor on how rows are sliced.
PAGODA_DECLARE_BODIES(void, packed_rows, (const LinearSlice&, int64_t first_row, int64_t end_row))

#ifdef PAGODA_X86
namespace amx {
void packed_tiles(const LinearSlice&, int64_t first_row, int64_t end_row);   // the same, for what multiplies_tiles
void grouped_tiles(const LinearSlice&, int64_t first_row, int64_t end_row);  // and has groups
}
#endif

// Whether products of such tokens are made of tiles, for any number of them. Those of integers have the bits of the instruction set below.
bool multiplies_tiles(Operand operand, const std::string& isa);

// ---- drivers ---------------------------------------------------------------------------------------------------------------

struct PackedLinearArgs {
  PackedMatrix matrix;
  const void* x = nullptr;  // [count][inputs] contiguous
  const void* bias = nullptr;
  void* out = nullptr;  // [count][outputs] contiguous
  int64_t count = 0;
  Dtype dtype = Dtype::f32;  // of x, bias and out
  bool dynamic = false;
  bool wide = false;   // out is float all the same: of numbers rounded to dtype (logits)
  bool gated = false;  // out is [count][outputs / 2], SiLU of the first rows times the others (`ends_gated`)
  bool from_tiles = false, to_tiles = false;  // x, out lie in tiles (`passes_tiles`)
  const PackedMatrix* following = nullptr;  // whose product comes next, or null
  bool following_gated = false;             // and ends so
};

void packed_linear(const PackedLinearArgs& args, int num_threads, const std::string& isa);

// ids[token] = what greedy() (rows.hpp) finds in the token's results, which are not kept: of 32 tokens and 151,936 rows they are 19 MB, written
// and read again. Tiles compare a pair of panels at a time; vectors write 512 and look at those. For kOnceTokens at most; `out`, `wide` and `gated`
// of the arguments mean nothing.
constexpr int64_t kOnceTokens = 64;  // read their weights once: memory is what limits them
void packed_likeliest(const PackedLinearArgs& args, int64_t* ids, int num_threads, const std::string& isa);

// A product for each of several matrices of one format and shape (the experts of a mixture), all of them in one job. Of few tokens for each, threads
// follow their shares of all the matrices as if they were one.
struct GroupedLinearArgs {
  struct Group {
    PackedMatrix matrix;
    const void* bias = nullptr;
    int64_t count = 0;  // tokens, which follow those of the group before
  };
  std::vector<Group> groups;
  const void* x = nullptr;        // [count][inputs] contiguous; with rows [any][inputs]
  const int32_t* rows = nullptr;  // [count]: which row of x each token is; null: they lie in order
  void* out = nullptr;            // [count][outputs] contiguous; gated [count][outputs / 2] (`ends_gated`)
  int64_t count = 0;
  Dtype dtype = Dtype::f32;
  bool dynamic = false;
  bool gated = false;
};

void grouped_linear(const GroupedLinearArgs& args, int num_threads, const std::string& isa);

// Rows ids[i] of the matrix, in dtype: out [count][inputs]. Throws std::out_of_range for an id that is no row.
void packed_embedding(const PackedMatrix& matrix, const int64_t* ids, int64_t count, void* out, Dtype dtype, int num_threads);

}  // namespace pagoda
