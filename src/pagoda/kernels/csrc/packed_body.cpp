// Slices of rows of a product with a packed weight, for one instruction set (see packed.hpp and packed_tile.hpp).

#include "packed_tile.hpp"

namespace pagoda {
namespace {

constexpr int kMaxTokens = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 3;  // of a tile: kTokens x kPanels x kVecs sums stay in registers
constexpr int64_t kTokenBlock = 22 * kMaxTokens;  // tokens whose sums are kept while the inputs come in pieces
constexpr int64_t kPiece = 1024;                  // inputs of an expanded piece (128 KiB to 512 KiB of panels: in a core's L2)

constexpr int panels_for(int tokens) {
  if (kLanes != 16) return tokens <= 2 && kLanes == 8 ? 2 : 1;
  return tokens <= 6 ? 4 : tokens <= 8 ? 3 : 2;
}

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- scratch: one buffer a thread, kept ------------------------------------------------------------------------------------

struct Scratch {
  char* data = nullptr;
  int64_t size = 0;
  ~Scratch() { __builtin_free(data); }
  char* need(int64_t bytes) {
    if (bytes > size) {
      __builtin_free(data);
      size = (bytes + 4095) / 4096 * 4096;
      data = static_cast<char*>(__builtin_malloc(size + 64));
      if (data == nullptr) __builtin_trap();
    }
    return data + (-reinterpret_cast<intptr_t>(data) & 63);
  }
};

thread_local Scratch scratch;

// ---- from sums to results --------------------------------------------------------------------------------------------------

// Sixteen results of one token: scaled, with bias, rounded; the last panel of a matrix may be cut short.
template <class Sum>
void finish_panel(const LinearSlice& s, int64_t token, int64_t panel, const uint32_t* sums) {
  const PackedMatrix& m = s.matrix;
  const bool row_scales = m.scales != nullptr && m.group == 0;
  const bool integers = s.x.operand == Operand::s8 && m.group == 0;
  const int32_t offset = !integers ? 0 : int32_t(s.x.sums[token]) * (m.format == Format::int8 ? 128 : 1);
  const float token_scale = integers ? s.x.scales[token] : 1.0f;
  const int64_t row = panel * kPanel, count = smaller(kPanel, m.outputs - row);
  float out[kPanel];
  for (int v = 0; v < kVecs; ++v) {
    Vec x = (Vec)load_lanes(sums + v * kLanes);
    if (integers) x = __builtin_convertvector((IntVec)x - offset, Vec);
    if (row_scales) x *= load(static_cast<const float*>(m.scales) + row + v * kLanes) * token_scale;
    store(out + v * kLanes, x);
  }
  const int64_t at = token * s.out_stride + row;
  if (s.dtype == Dtype::f32) {
    const float* bias = static_cast<const float*>(s.bias);
    float* to = static_cast<float*>(s.out) + at;
    if (bias) for (int64_t i = 0; i < count; ++i) out[i] += bias[row + i];
    memcpy(to, out, count * sizeof(float));
  } else {
    const uint16_t* bias = static_cast<const uint16_t*>(s.bias);
    uint16_t* to = static_cast<uint16_t*>(s.out) + at;
    if (bias) for (int64_t i = 0; i < count; ++i) out[i] += widen(bias[row + i]);
    for (int64_t i = 0; i < count; ++i) narrow(out[i], to + i);
  }
}

// ---- one kind of product ---------------------------------------------------------------------------------------------------

typedef void (*RunTile)(const GroupedTile&);

template <class Op, bool kGrouped, int kTokens, int kPanels>
void run_tile(const GroupedTile& g) {
  if constexpr (kGrouped) grouped_tile<Op, kTokens, kPanels>(g);
  else plain_tile<Op, kTokens, kPanels>(g.tile);
}

// For 1..kMaxTokens tokens: the tile with many panels, and that with one.
template <class Op, bool kGrouped>
struct Tiles {
  RunTile wide[kMaxTokens + 1], narrow[kMaxTokens + 1];
  template <int kTokens>
  constexpr void fill() {
    wide[kTokens] = run_tile<Op, kGrouped, kTokens, panels_for(kTokens)>;
    narrow[kTokens] = run_tile<Op, kGrouped, kTokens, 1>;
    if constexpr (kTokens > 1) fill<kTokens - 1>();
  }
  constexpr Tiles() : wide(), narrow() { fill<kMaxTokens>(); }
};

struct Piece {  // of the inputs, as the tiles read it
  const uint8_t* panels;
  int64_t panel_stride, first, lines;
  bool in_place;
};

template <class Op, bool kGrouped>
class Product {
 public:
  explicit Product(const LinearSlice& slice) : s(slice), m(slice.matrix) {
    expanded = s.x.operand == Operand::f32 ? m.format != Format::fp32 : s.x.operand == Operand::bf16 && m.format != Format::bf16;
    step = s.x.operand == Operand::f32 ? 1 : s.x.operand == Operand::bf16 ? 2 : 4;  // inputs in a word
    num_tiles = (s.x.count + kMaxTokens - 1) / kMaxTokens;
  }

  void run(int64_t first_panel, int64_t end_panel) {
    const int64_t few = panels_for(static_cast<int>(num_tiles > 1 ? kMaxTokens : s.x.count));
    const int64_t block = num_tiles > 1 ? 8 * few : few;
    piece = expanded ? (num_tiles > 1 ? kPiece : kPiece / 4) : num_tiles > 1 ? 2 * kPiece : m.inputs;
    many_pieces = m.inputs > piece;
    const int64_t held = many_pieces ? smaller(s.x.count, kTokenBlock) : kMaxTokens;
    const int64_t panel_bytes = expanded ? smaller(piece, m.blocks() * m.block()) / step * 64 : 0;
    char* const memory = scratch.need(block * panel_bytes + held * block * kPanel * 4);
    buffer = reinterpret_cast<uint8_t*>(memory);
    sums = reinterpret_cast<uint32_t*>(memory + block * panel_bytes);
    for (int64_t token = 0; token < s.x.count; token += kTokenBlock)
      for (int64_t panel = first_panel; panel < end_panel; panel += block)
        run_block(token, smaller(s.x.count, token + kTokenBlock), panel, smaller(end_panel, panel + block), block * kPanel);
  }

 private:
  void run_block(int64_t token, int64_t end_token, int64_t panel, int64_t end_panel, int64_t sum_stride) {
    for (int64_t first = 0; first < m.inputs; first += piece) {
      const Piece p = make_piece(panel, end_panel, first);
      for (int64_t t = token; t < end_token;) {
        // Tiles of nearly equal height.
        const int64_t left = (end_token - t + kMaxTokens - 1) / kMaxTokens, count = (end_token - t + left - 1) / left;
        uint32_t* const at = sums + (many_pieces ? (t - token) * sum_stride : 0);
        run_row(p, t, static_cast<int>(count), panel, end_panel, at, sum_stride);
        if (!many_pieces) finish(t, t + count, panel, end_panel, at, sum_stride);
        t += count;
      }
    }
    if (many_pieces) finish(token, end_token, panel, end_panel, sums, sum_stride);
  }

  Piece make_piece(int64_t panel, int64_t end_panel, int64_t first) const {
    const int64_t count = smaller(piece, m.inputs - first);
    const int64_t stored = (count + m.block() - 1) / m.block() * 64;  // bytes of a panel
    const uint8_t* const data = m.data + panel * m.panel_bytes() + first / m.block() * 64;
    if (!expanded) return {data, m.panel_bytes(), first, stored / 64, true};
    const int64_t lines = (count + m.block() - 1) / m.block() * m.block() / step;
    for (int64_t p = panel; p < end_panel; ++p) {
      uint8_t* const out = buffer + (p - panel) * lines * 64;
#if PAGODA_DPBF16
      if (s.x.operand == Operand::bf16) {
        expand_bf16(m, p, first, count, reinterpret_cast<uint32_t*>(out));
        continue;
      }
#endif
      expand_floats(m, p, first, count, reinterpret_cast<float*>(out));
    }
    return {buffer, lines * 64, first, lines, false};
  }

  void run_row(const Piece& p, int64_t token, int count, int64_t panel, int64_t end_panel, uint32_t* at, int64_t sum_stride) const {
    static constexpr Tiles<Op, kGrouped> tiles;
    GroupedTile g;
    g.matrix = &m;
    g.tile.panel_stride = p.panel_stride;
    g.tile.token = s.x.data + token * s.x.steps + p.first / step;
    g.tile.token_stride = s.x.steps;
    g.tile.lines = p.lines;
    g.tile.sum_stride = sum_stride;
    g.tile.add = p.first > 0;
    if (kGrouped) {
      g.lines_of_group = m.group / step / Op::kSplit;
      g.groups = (p.lines + g.lines_of_group - 1) / g.lines_of_group;
      g.first_group = p.first / m.group;
      g.scale_stride = m.groups();
      g.token_scales = s.x.scales ? s.x.scales + token * g.scale_stride : nullptr;
      g.token_sums = s.x.sums ? s.x.sums + token * g.scale_stride : nullptr;
    }
    const int wide = panels_for(count);
    for (int64_t i = panel; i < end_panel;) {
      const bool many = i + wide <= end_panel;
      g.panel = i;
      g.tile.panel = p.panels + (i - panel) * p.panel_stride;
      g.tile.ahead = p.in_place ? smaller(wide * p.panel_stride, 4096) : 0;
      g.tile.sums = at + (i - panel) * kPanel;
      (many ? tiles.wide : tiles.narrow)[count](g);
      i += many ? wide : 1;
    }
  }

  void finish(int64_t token, int64_t end_token, int64_t panel, int64_t end_panel, const uint32_t* at, int64_t sum_stride) const {
    for (int64_t t = token; t < end_token; ++t)
      for (int64_t p = panel; p < end_panel; ++p)
        finish_panel<typename Op::Sum>(s, t, p, at + (t - token) * sum_stride + (p - panel) * kPanel);
  }

  const LinearSlice& s;
  const PackedMatrix& m;
  bool expanded, many_pieces = false;
  int64_t step, num_tiles, piece = 0;
  uint8_t* buffer = nullptr;
  uint32_t* sums = nullptr;
};

}  // namespace

namespace PAGODA_ISA {

void packed_rows(const LinearSlice& s, int64_t first_row, int64_t end_row) {
  const int64_t first = first_row / kPanel, end = (end_row + kPanel - 1) / kPanel;
  if (s.x.count == 0 || first >= end) return;
  if (s.x.operand == Operand::f32) return Product<Floats, false>(s).run(first, end);
#if PAGODA_DPBF16
  if (s.x.operand == Operand::bf16) {
    if (s.matrix.format == Format::int4) return Product<Pairs, true>(s).run(first, end);
    return Product<Pairs, false>(s).run(first, end);
  }
#endif
  if (s.matrix.format == Format::int8) return Product<Quads<1>, false>(s).run(first, end);
  if (s.matrix.format == Format::int4) return Product<Quads<2>, true>(s).run(first, end);
  return Product<Quads<4>, false>(s).run(first, end);
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
