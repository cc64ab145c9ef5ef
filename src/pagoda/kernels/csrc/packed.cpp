#include "packed.hpp"

#include <algorithm>
#include <stdexcept>

#include "parallel.hpp"

namespace pagoda {

namespace {

constexpr int64_t kParallelBytes = 256 << 10;  // weights under which waking a thread costs more than it brings
constexpr int64_t kItemTokens = 528;           // tokens of one item, where there are many
constexpr int64_t kItemPanels = 16;            // panels of one item then
constexpr int64_t kBlock = 4;                  // panels that slices are cut by: the widest tile

// One buffer a thread that calls, kept: a step's products follow one another.
struct Buffer {
  char* data = nullptr;
  int64_t size = 0;
  ~Buffer() { ::operator delete(data, std::align_val_t{64}); }
  void* need(int64_t bytes) {
    if (bytes > size) {
      ::operator delete(data, std::align_val_t{64});
      data = nullptr;
      data = static_cast<char*>(::operator new(static_cast<size_t>(bytes), std::align_val_t{64}));
      size = bytes;
    }
    return data;
  }
};

thread_local Buffer buffer;

int64_t words_of(const PackedMatrix& m, Operand operand) {
  const int64_t step = operand == Operand::f32 ? 1 : operand == Operand::bf16 ? 2 : 4;  // inputs in a word
  return (m.blocks() * m.block() + step - 1) / step;
}

// Tokens a multiple of 1 KiB apart would share a few sets of the first-level cache: a tile of twelve would not fit.
bool crowded(int64_t bytes, int64_t count) { return count > 4 && bytes % 1024 == 0; }

bool has_sums(const PackedMatrix& m, Operand operand) {
  return operand == Operand::s8 || m.zeros != nullptr;
}

}  // namespace

PackedMatrix expert_of(const PackedMatrix& stack, int64_t e) {
  PackedMatrix m = stack;
  const int64_t numbers = e * m.panels() * m.groups() * kPanel;
  m.data += e * m.panels() * m.panel_bytes();
  if (m.scales) m.scales = static_cast<const char*>(m.scales) + numbers * (m.wide_scales ? 4 : 2);
  if (m.zeros) m.zeros += numbers;
  return m;
}

Operand operand_of(const PackedMatrix& matrix, Dtype tokens, bool dynamic, const std::string& isa) {
  if (dynamic) {
    if (matrix.format < Format::int8) throw std::invalid_argument("dynamic quantization needs integer weights");
    return Operand::s8;
  }
  const bool pairs = tokens == Dtype::bf16 && matrix.format != Format::fp32 && isa_index(isa) >= kPairsIsa;
  return pairs ? Operand::bf16 : Operand::f32;
}

bool usable_in_place(const PackedMatrix& m, Operand operand, Dtype dtype, int64_t stride, int64_t count) {
  if (operand == Operand::s8 || has_sums(m, operand)) return false;
  const bool same = operand == Operand::f32 ? dtype == Dtype::f32 : dtype == Dtype::bf16;
  const int64_t width = size_of(dtype);
  return same && m.inputs % m.block() == 0 && stride * width % 4 == 0 && !crowded(stride * width, count);
}

int64_t prepared_bytes(const PackedMatrix& m, Operand operand, int64_t count) {
  const Tokens t = prepared_in(m, operand, count, nullptr);
  return count * (t.steps * 4 + (operand == Operand::s8 ? 8 : has_sums(m, operand) ? 4 : 0) * m.groups());
}

Tokens prepared_in(const PackedMatrix& m, Operand operand, int64_t count, void* memory) {
  Tokens t;
  t.operand = operand, t.count = count;
  t.steps = words_of(m, operand);
  if (crowded(t.steps * 4, count)) t.steps += 16;
  auto* const words = static_cast<uint32_t*>(memory);
  t.data = words;
  if (memory == nullptr) return t;
  uint32_t* const numbers = words + count * t.steps;
  if (has_sums(m, operand)) t.sums = numbers;
  if (operand == Operand::s8) t.scales = reinterpret_cast<float*>(numbers + count * m.groups());
  return t;
}

void packed_linear(const PackedLinearArgs& a, int num_threads, const std::string& isa) {
  const auto prepare = PAGODA_BODY(isa, prepare_tokens);
  const auto rows = PAGODA_BODY(isa, packed_rows);
  const PackedMatrix& m = a.matrix;
  const Operand operand = operand_of(m, a.dtype, a.dynamic, isa);
  if (m.inputs > 65536 && operand == Operand::s8 && m.group == 0)
    throw std::invalid_argument("more than 65536 inputs would overflow 32-bit sums");
  LinearSlice s;
  s.matrix = m, s.bias = a.bias, s.out = a.out, s.dtype = a.dtype, s.out_stride = m.outputs;
  s.wide = a.wide && a.dtype != Dtype::f32;
  if (usable_in_place(m, operand, a.dtype, m.inputs, a.count)) {
    s.x.operand = operand, s.x.count = a.count, s.x.steps = m.inputs * size_of(a.dtype) / 4;
    s.x.data = static_cast<const uint32_t*>(a.x);
  } else {
    PrepareArgs p;
    p.matrix = &m, p.x = a.x, p.dtype = a.dtype, p.stride = m.inputs;
    s.x = p.out = prepared_in(m, operand, a.count, buffer.need(prepared_bytes(m, operand, a.count)));
    const int64_t part = 16, parts = (a.count + part - 1) / part;
    parallel_for(parts, num_threads, [&](int64_t i) { prepare(p, i * part, std::min(a.count, (i + 1) * part)); });
  }
  if (m.panels() * m.panel_bytes() * std::max<int64_t>(1, a.count / 4) < kParallelBytes) num_threads = 1;
  // Few tokens: few long slices, since a slice fetches ahead only within itself. Many: small ones, which end together.
  const int64_t token_parts = (a.count + kItemTokens - 1) / kItemTokens, blocks = (m.panels() + kBlock - 1) / kBlock;
  const int64_t parts = std::min(blocks, std::max<int64_t>(2 * num_threads, a.count > 64 ? m.panels() / kItemPanels : 0));
  parallel_for(parts * token_parts, num_threads, [&](int64_t i) {
    const int64_t token = i % token_parts * kItemTokens, part = i / token_parts;
    const int64_t row = part * blocks / parts * kBlock * kPanel, end = (part + 1) * blocks / parts * kBlock * kPanel;
    LinearSlice own = s;
    own.x = s.x.from(token, m.groups());
    own.x.count = std::min(own.x.count, kItemTokens);
    own.out = static_cast<char*>(s.out) + token * s.out_stride * (s.wide ? 4 : size_of(s.dtype));
    rows(own, row, std::min(m.outputs, end));
  });
}

}  // namespace pagoda
