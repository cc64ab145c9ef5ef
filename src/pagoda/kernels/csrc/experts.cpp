#include "experts.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "parallel.hpp"

namespace pagoda {

namespace {

constexpr int64_t kAlign = 64;
constexpr int64_t kRows = 1024;   // of a stretch of experts: what a prompt's tokens hold at a time, however many experts each of them asks
constexpr int64_t kWeighed = 8192;  // elements of one item

int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Tokens of each expert side by side, in order.
void sort_tokens(const ExpertsArgs& a, ExpertsMemory& memory) {
  const int64_t num_experts = static_cast<int64_t>(a.experts->each.size()), count = a.tokens * a.top_k;
  std::vector<int64_t>& starts = memory.starts;
  starts.assign(num_experts + 1, 0);
  for (int64_t i = 0; i < count; ++i) {
    if (a.ids[i] < 0 || a.ids[i] >= num_experts)
      throw std::out_of_range("expert " + std::to_string(a.ids[i]) + " of " + std::to_string(num_experts));
    ++starts[a.ids[i] + 1];
  }
  memory.uses.clear();
  for (int64_t e = 0; e < num_experts; ++e) {
    if (starts[e + 1]) memory.uses.push_back({e, starts[e], starts[e + 1], 0});
    starts[e + 1] += starts[e];
  }
  memory.tokens.resize(count), memory.weights.resize(count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t to = starts[a.ids[i]]++;  // from here on where the expert's next token goes
    memory.tokens[to] = static_cast<int32_t>(i / a.top_k), memory.weights[to] = a.weights[i];
  }
}

struct Stretch {
  const ExpertsArgs& a;
  ExpertsMemory& memory;
  const int threads;
  const std::string& isa;
  char *inner = nullptr, *acted = nullptr, *results = nullptr;
  char* gathered = nullptr;  // where results will be

  // Experts whose matrices are multiplied together have rows side by side.
  void run(ExpertsMemory::Use* first, ExpertsMemory::Use* end) {
    memory.rows.clear();
    for (int32_t alike = 0; alike < a.experts->num_alike; ++alike) {
      const auto begin = static_cast<int64_t>(memory.rows.size());
      const Expert* like = nullptr;
      for (ExpertsMemory::Use* use = first; use < end; ++use) {
        const Expert& expert = a.experts->each[use->expert];
        if (expert.alike != alike) continue;
        like = &expert, use->row = static_cast<int64_t>(memory.rows.size());
        memory.rows.insert(memory.rows.end(), memory.tokens.begin() + use->first, memory.tokens.begin() + use->first + use->count);
      }
      if (like) multiply(*like, alike, first, end, begin);
    }
    add_up(first, end);
  }

 private:
  int64_t size() const { return size_of(a.dtype); }

  void multiply(const Expert& like, int32_t alike, const ExpertsMemory::Use* first, const ExpertsMemory::Use* end, int64_t row) {
    const Experts& e = *a.experts;
    const int64_t count = static_cast<int64_t>(memory.rows.size()) - row;
    char *const in = inner + row * 2 * e.inner * size(), *const act = acted + row * e.inner * size();
    gathered = results + row * e.hidden * size();
    const bool gated = e.kind == Activation::silu &&
                       ends_gated(like.gate_up, operand_of(like.gate_up, a.dtype, like.gate_up_dynamic, isa), a.dtype, 1, isa);
    product(alike, first, end, true, a.x, memory.rows.data() + row, gated ? act : in, gated, count);
    if (!gated) {
      ActivationArgs f;
      f.rows = count, f.width = e.inner, f.dtype = a.dtype, f.gate = in, f.up = in + e.inner * size(), f.out = act;
      f.row_stride = 2 * e.inner, f.out_stride = e.inner, f.kind = e.kind, f.alpha = e.alpha, f.limit = e.limit;
      activation(f, threads, isa);
    }
    product(alike, first, end, false, act, nullptr, gathered, false, count);
  }

  void product(int32_t alike, const ExpertsMemory::Use* first, const ExpertsMemory::Use* end, bool up, const void* x, const int32_t* rows,
               char* out, bool gated, int64_t count) {
    const Experts& e = *a.experts;
    const auto* const biases = static_cast<const char*>(up ? e.gate_up_bias : e.down_bias);
    GroupedLinearArgs& p = memory.product;
    p.groups.clear();
    for (const ExpertsMemory::Use* use = first; use < end; ++use) {
      const Expert& expert = e.each[use->expert];
      if (expert.alike != alike) continue;
      const PackedMatrix& m = up ? expert.gate_up : expert.down;
      p.groups.push_back({m, biases ? biases + use->expert * m.outputs * size() : nullptr, use->count});
      p.dynamic = up ? expert.gate_up_dynamic : expert.down_dynamic;
    }
    p.x = x, p.rows = rows, p.out = out, p.count = count, p.dtype = a.dtype, p.gated = gated;
    if (p.groups[0].matrix.opened()) one_by_one(p);
    else grouped_linear(p, threads, isa);
  }

  // Codes that are opened while they are multiplied, a matrix at a time.
  void one_by_one(const GroupedLinearArgs& p) const {
    int64_t token = 0;
    const char* x = static_cast<const char*>(p.x);
    const int64_t bytes = p.groups[0].matrix.inputs * size();
    if (p.rows) {
      for (int64_t i = 0; i < p.count; ++i) std::memcpy(gathered + i * bytes, x + p.rows[i] * bytes, bytes);
      x = gathered;
    }
    for (const GroupedLinearArgs::Group& group : p.groups) {
      PackedLinearArgs one;
      one.matrix = group.matrix, one.bias = group.bias, one.dynamic = p.dynamic, one.dtype = p.dtype, one.count = group.count;
      one.x = x + token * bytes, one.out = static_cast<char*>(p.out) + token * group.matrix.outputs * size();
      packed_linear(one, threads, isa);
      token += group.count;
    }
  }

  void add_up(const ExpertsMemory::Use* first, const ExpertsMemory::Use* end) const {
    const int64_t width = a.experts->hidden, rows = static_cast<int64_t>(memory.rows.size());
    const auto body = PAGODA_BODY(isa, weigh_columns);
    const int64_t most = (width + 63) / 64, parts = std::clamp<int64_t>(rows * width / kWeighed, 1, std::min<int64_t>(most, 4 * threads));
    parallel_for(parts, threads, [&](int64_t part) {
      for (const ExpertsMemory::Use* use = first; use < end; ++use) {
        WeighArgs w;
        w.results = results + use->row * width * size(), w.out = a.out, w.width = width, w.dtype = a.dtype;
        w.tokens = memory.tokens.data() + use->first, w.weights = memory.weights.data() + use->first;
        body(w, use->count, part * most / parts * 64, std::min(width, (part + 1) * most / parts * 64));
      }
    });
  }
};

int64_t most_rows(int64_t tokens, int64_t top_k) { return std::min(tokens * top_k, std::max(kRows, tokens)); }

}  // namespace

int64_t experts_scratch_bytes(const Experts& e, int64_t tokens, int64_t top_k, Dtype dtype) {
  const int64_t rows = most_rows(tokens, top_k), size = size_of(dtype);
  return aligned(rows * 2 * e.inner * size) + aligned(rows * e.inner * size) + rows * e.hidden * size;
}

void run_experts(const ExpertsArgs& a, ExpertsMemory& memory, int num_threads, const std::string& isa) {
  const int64_t rows = most_rows(a.tokens, a.top_k), size = size_of(a.dtype);
  std::memset(a.out, 0, a.tokens * a.experts->hidden * size);
  sort_tokens(a, memory);
  Stretch stretch{a, memory, num_threads, isa};
  stretch.inner = static_cast<char*>(a.scratch);
  stretch.acted = stretch.inner + aligned(rows * 2 * a.experts->inner * size);
  stretch.results = stretch.acted + aligned(rows * a.experts->inner * size);
  ExpertsMemory::Use* const end = memory.uses.data() + memory.uses.size();
  for (ExpertsMemory::Use* first = memory.uses.data(); first < end;) {
    ExpertsMemory::Use* stop = first;
    for (int64_t sum = 0; stop < end && (stop == first || sum + stop->count <= kRows); ++stop) sum += stop->count;
    stretch.run(first, stop);
    first = stop;
  }
}

}  // namespace pagoda
