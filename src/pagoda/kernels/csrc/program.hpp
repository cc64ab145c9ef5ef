// A decoder's blocks as one list of instructions over a few buffers, run for a whole step without a word of Python between
// them. models/program.py writes the list from the model's spec; running the layers one op at a time is its plain twin.
//
//   register 0   the residual stream [T][hidden]: the caller's x, or looked up from token ids
//   register 1…  [T][width] each, inside the workspace that the caller lends; there is room for register 0 before them
//   passing      of some registers only up to kPassingTokens rows are there at a time: those between the two products of a
//                feed-forward, which are the widest. The instructions from the product that fills one to the product that reads one
//                without filling another run for some tokens, then for the next ones. Nothing else may read or write them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "attention.hpp"
#include "attention_memo.hpp"
#include "choice.hpp"
#include "experts.hpp"
#include "head_products.hpp"
#include "packed.hpp"
#include "query_rings.hpp"
#include "routing.hpp"
#include "rows.hpp"

namespace pagoda {

constexpr int64_t kPassingTokens = 512;

// Norm of register src into dst (may be equal). Only what is the same in every step is set in `args`. Where a sum comes before, both are done row by
// row: src += branch * scale first.
struct NormStep {
  int src = 0, dst = 0;
  NormArgs args;
  int branch = -1;  // a register, or none
  float scale = 1.0f;
};

// dst = src @ matrix.T + bias. Where gated SiLU follows, `gated` is its register: many tokens go there at once, and dst is left as it is
// (nothing but the activation reads it).
struct LinearStep {
  int src = 0, dst = 0;
  PackedMatrix matrix;
  const void* bias = nullptr;
  bool dynamic = false;
  int gated = -1;
  PackedMatrix following{};  // of the next product, whose beginning is fetched at the end of this one
  bool feeds = false, following_dynamic = false;  // that product is the next instruction after the activation and multiplies what it leaves
  bool following_gated = false;  // gated SiLU follows that product
  bool summed = false;  // dst is the branch of the sum and norm that are the next instruction, and read by nothing else
};

// dst = act(gate) * up, with gate and up side by side in src; or act(src).
struct ActivationStep {
  int src = 0, dst = 0;
  bool gated = true;
  Activation kind = Activation::silu;
  float alpha = 0.0f, limit = 0.0f;
};

struct AddStep {  // dst += src * scale
  int src = 0, dst = 0;
  float scale = 1.0f;
};

// Norm of some heads of a fused projection [T][(Hq + 2 Hkv) * dim] in place: `parts` norms of `args.dim` from element `at` on.
struct HeadNormStep {
  int reg = 0;
  int64_t at = 0;
  NormArgs args;
};

struct ClipStep {  // register to [-bound, bound]
  int reg = 0;
  float bound = 0.0f;
};

struct RotaryStep {  // the first `heads` heads of a fused projection, from element `first` of each on, by table number `table`
  int reg = 0, table = 0;
  int64_t heads = 0, dim = 0;
  bool interleaved = false;
  int64_t first = 0;
};

// What latent attention (models/layers/latent.py) asks pages with, and what it writes into them, in register dst as a fused projection of heads of
// rank + rope elements and no values: [key_up[h].T @ (the query's first elements) | its last ones to be turned] of every head, then the slot as it lies in
// `down` behind q, [latent | key to be turned].
struct LatentStep {
  int down = 0, queries = 0, dst = 0;  // queries: the register that they begin in (`down` itself where nothing projects them up)
  int64_t heads = 0, nope = 0, rope = 0, rank = 0, slot_at = 0;
  const void* key_up = nullptr;  // [heads][nope][rank]
};

struct HeadProductStep {  // dst [T][heads][rows] = weight[h] @ src [T][heads][columns]
  int src = 0, dst = 0;
  int64_t heads = 0, rows = 0, columns = 0;
  const void* weight = nullptr;
};

// Writes K and V of a fused projection into pages, attends with its queries: dst [T][Hq * dim]. Where a rotation comes before, tokens are turned and
// written one after the other.
struct AttendStep {
  int src = 0, dst = 0, layer = 0;
  int64_t num_q_heads = 0, num_kv_heads = 0, dim = 0;
  float scale = 1.0f, soft_cap = 0.0f;
  int64_t window = 0;
  const float* sinks = nullptr;
  const float* slopes = nullptr;
  bool last = false;  // no later layer reads K and V: from here on the step has the wanted tokens only
  int64_t v_dim = 0;  // > 0: pages are latent, and values are the first columns of their rows
  std::optional<RotaryStep> rotary = std::nullopt;
};

// src @ weight.T + bias of few rows: what a router says of its experts, what a gate says of a layer.
struct LogitsStep {
  int src = 0;
  int64_t outputs = 0;
  const void *weight = nullptr, *bias = nullptr;  // rows, of the dtype
  bool exact = false;                             // RouterArgs
  PackedMatrix matrix{};                          // instead of rows, where it has outputs
  bool dynamic = false;
};

// Which experts the tokens pass by the logits before, for the ExpertsStep behind it.
struct RouteStep {
  const float* correction = nullptr;
  RouterRule rule;
};

struct ExpertsStep {  // dst = what the experts that were chosen make of src, weighed and summed up
  int src = 0, dst = 0;
  Experts experts;
  int64_t top_k = 0;
};

struct GateStep {  // reg *= sigmoid of the logits before, one for a token
  int reg = 0;
};

struct EmbedStep {  // register 0 = rows of the matrix by token ids; left out where the caller brings x
  PackedMatrix matrix;
};

struct HeadStep {  // logits = register 0 @ matrix.T + bias, rounded to the dtype; left out where nobody asks for logits
  PackedMatrix matrix;
  const void* bias = nullptr;
  bool dynamic = false;
  PackedMatrix following{};  // of the next step
};

struct GreedyStep {  // the likeliest token of each row of logits `width` wide; left out where nobody asks
  int64_t width = 0;
};

using Instruction = std::variant<NormStep, LinearStep, ActivationStep, AddStep, HeadNormStep, ClipStep, RotaryStep, AttendStep, LatentStep,
                                 HeadProductStep, LogitsStep, RouteStep, ExpertsStep, GateStep, EmbedStep, HeadStep, GreedyStep>;

// A step over pages that were encoded whole: those of all layers, and where the newest slots lie beside them.
struct CodedStep {
  const PageSide* sides = nullptr;  // [L][2]: keys, values; null: pages hold rows
  int64_t page_bytes = 0;
  const int64_t *k = nullptr, *v = nullptr;         // [S] addresses of [L][H][room][dim] of the model's dtype
  const int64_t *starts = nullptr, *room = nullptr;  // [S] the first slot of them; how many there is room for
  const int64_t* encoded = nullptr;                  // [S] slots from the first on that are encoded before anything is attended
};

struct RotaryTableRef {
  const void* cos = nullptr;  // [positions][pairs]
  const void* sin = nullptr;
  Dtype dtype = Dtype::f32;
  int64_t pairs = 0;
};

// What one step brings. A stride of 0 between layers: they share the array.
struct StepArrays {
  void* x = nullptr;             // null: the stream begins with the rows of `ids`, in the workspace
  const int64_t* ids = nullptr;  // [T]
  int64_t num_tokens = 0;
  const int64_t* positions = nullptr;  // [T]
  const RotaryTableRef* rotary = nullptr;  // by table number
  const char* pages = nullptr;
  int64_t num_pages = 0;
  PageShape shape;
  int64_t num_seqs = 0, num_rows = 0, max_pages = 0;
  const int32_t* rows = nullptr;      // [L or 1][R][max_pages]
  int64_t rows_stride = 0;
  const int32_t* row_of = nullptr;    // [S][H]
  const int32_t* offset = nullptr;    // [L][S][H]
  const int32_t* kv_lens = nullptr;   // [L or 1][S][H]
  int64_t lens_stride = 0;
  const int32_t* q_starts = nullptr;  // [S + 1]
  const uint8_t* are_wide = nullptr;  // [S] or null: as AttentionArgs
  const int32_t* page_ids = nullptr;  // [L or 1][T][H]; shared: the ids of layer 0, layer l is l * H further
  const int32_t* slots = nullptr;     // [L or 1][T][H]
  int64_t writes_stride = 0;
  // Tokens whose hidden states the caller asks for, ascending, and of every sequence its last ones; -1: all of them.
  const int64_t* wanted = nullptr;
  int64_t num_wanted = -1;
  CodedStep coded;
  PageChoice choice;  // of sequences that read only some of their pages
  // What slots receive is added up for some sequences: addresses [S] of float [L][H][width], 0 where nobody asks; or null.
  const int64_t *sums = nullptr, *counts = nullptr;
  const int64_t *sum_widths = nullptr, *count_widths = nullptr;  // [S]
  const int64_t* sum_last = nullptr;  // [S]: w > 0: only the last w queries of its chunk
  // How often slots count, where some count more than once: addresses [L][S] of float [H][width] logarithms, 0 where all count once; or null.
  const int64_t* weights = nullptr;
  const int64_t* weight_widths = nullptr;  // [S]
  QueryRings queries;            // of sequences whose newest queries somebody remembers
  float* logits = nullptr;       // [wanted tokens][vocabulary], or null
  // [wanted tokens], as greedy(), or null. Where all are found, of kOnceTokens at most, the logits are left as they are.
  int64_t* likeliest = nullptr;
  // Where the caller attends by itself, all from `pages` on but the wanted tokens is left out: called with each layer, its
  // [q | k | v] of every token, and where the answer goes.
  std::function<void(int layer, char* qkv, char* out)> attend;
};

// Memory that a run needs beside its registers.
struct RunMemory {
  std::vector<char*> registers;
  std::vector<bool> passing;
  std::vector<int32_t> ids;  // page ids of a layer, where all layers share an array
  std::vector<int32_t> wanted_starts, attending_starts;
  std::vector<SumTarget> targets;
  std::vector<SlotWeights> weights_of;  // the sequences of a layer
  std::vector<RawSlots> raw;      // of a layer
  std::vector<int64_t> encoding;  // sequences some of whose raw slots are encoded
  CodedPages coded;
  ChosenTable chosen;
  AttentionMemo memo, chosen_memo{false};
  std::vector<float> logits, weights;  // of a router or a gate
  std::vector<int64_t> experts;        // that it chose
  ExpertsMemory sorted;
  void* scratch = nullptr;  // of the experts, behind the registers
};

// One run at a time: it leaves its memory to the next, so that a step allocates nothing unless it is larger than all before.
class Program {
 public:
  Program(Dtype dtype, std::vector<int64_t> widths, const std::vector<int>& passing);

  void push(Instruction instruction);
  size_t size() const { return instructions_.size(); }

  // Bytes of all registers for so many tokens, and of what experts need beside them.
  int64_t workspace_bytes(int64_t num_tokens) const;

  // Whether the time of every instruction is added up from now on (off at first; two readings of the clock each, 50 ns).
  void watch(bool on) { watched_ = on; }

  // What the watched runs took: for each instruction a name (its kind, and the shape of a product), calls and seconds; choosing pages
  // and encoding them apart from attention.
  struct Part {
    int64_t nanoseconds = 0, calls = 0;

    void add(int64_t more) { nanoseconds += more, ++calls; }
    void add(const Part& other) { nanoseconds += other.nanoseconds, calls += other.calls; }
  };
  struct Timing {
    std::string name;
    int64_t calls = 0;
    double seconds = 0.0;
  };
  std::vector<Timing> timings() const;

  // Runs every instruction in order on up to num_threads threads; the wanted tokens' hidden states come first in `x` then.
  // Throws as the kernels do, std::invalid_argument for tokens that cannot be asked for.
  void run(const StepArrays& step, void* workspace, int num_threads, const std::string& isa);

 private:
  // The number behind the last instruction that some tokens pass before the next ones do, from number `first` on.
  size_t end_of_passing(size_t first) const;
  int64_t rows_of(size_t reg, int64_t num_tokens) const { return memory_.passing[reg] ? std::min(num_tokens, kPassingTokens) : num_tokens; }

  // Products whose results it reads leave them in rows, whoever sums them before.
  void keep_rows_for(const Instruction& reader);

  Dtype dtype_;
  std::vector<int64_t> widths_;  // of every register, the stream's first
  std::vector<Instruction> instructions_;
  int last_product_ = -1, product_before_ = -1;  // numbers of `instructions_`
  bool watched_ = false;
  RunMemory memory_;
  std::vector<int64_t> nanoseconds_, calls_;  // of every instruction, since it was first watched
  Part choosing_, encoding_;                  // which attention's are without
};

}  // namespace pagoda
