// Slices of rows of a product with a packed weight, for one instruction set (see packed.hpp and packed_tile.hpp).
//
// Few tokens (one tile) follow the weights once through memory. Many go block by block: panels that fit in a core's second
// cache meet tile after tile of tokens; formats that must be turned into floats or bfloat16 are turned once a block.

#include "bf12.hpp"
#include "caches.hpp"
#include "packed_results.hpp"
#include "packed_tile.hpp"

namespace pagoda {
namespace {

constexpr int64_t kOpenedLines = 32;   // of bf12 at a time
constexpr int64_t kOpenedPiece = 64;  // inputs at a time, for few tokens, of codes that are opened into floats: half a first cache

// How much of a core's caches (caches.hpp) goes to what.
struct Shares {
  explicit Shares(Caches caches)
      : stream_bytes(caches.second * 3 / 8), piece(caches.second >> 10), short_piece(caches.first >> 8),
        block_tokens(larger(6, smaller(22, caches.second * 22 >> 20)) * kMaxTokens) {}

  int64_t stream_bytes;  // panels at a time, as they are stored; as many bytes of tokens stay beside them
  int64_t piece;         // inputs turned at a time for many tokens: a quarter of the second cache in bfloat16
  int64_t short_piece;   // for few: half of the first cache
  int64_t block_tokens;  // whose sums are kept while the inputs come in pieces: an eighth of the second cache
};

// ---- one kind of product ---------------------------------------------------------------------------------------------------

struct Piece {  // of the inputs of a block of panels, as the tiles read it
  const uint8_t* panels;
  int64_t panel_stride, first, lines;
  const uint8_t* next;  // what comes after, to be fetched; null where somebody else goes on
};

// Op reads the lines as they are stored; Wide reads what Op turned them into, when that pays.
template <class Op, class Wide, bool kGrouped>
class Product {
 public:
  explicit Product(const LinearSlice& slice) : s(slice), m(slice.matrix) {}

  static constexpr int kTurnedSteps = __is_same(Op, Wide) ? 1 : Op::kSteps;  // lines that one becomes

  void run(int64_t first_panel, int64_t last_panel) {
    if constexpr (__is_same(Op, Floats))
      if (m.opened() && m.format != Format::bitstack && s.x.count <= kCodedTokens) return run_coded(first_panel, last_panel);
    plan();
    end_of_slice = last_panel;
    for (int64_t token = 0; token < s.x.count; token += shares.block_tokens)
      for (int64_t panel = first_panel; panel < end_of_slice; panel += block)
        run_block(token, smaller(s.x.count, token + shares.block_tokens), panel, smaller(end_of_slice, panel + block));
  }

 private:
  // Few tokens meet codes that are opened in registers.
  void run_coded(int64_t first_panel, int64_t last_panel) {
    alignas(64) float at[kCodedTokens * kCodedPanels * kPanel];
    for (int64_t panel = first_panel; panel < last_panel;) {
      const int64_t wide = panel + kCodedPanels <= last_panel ? kCodedPanels : 1;
      (wide > 1 ? multiply_codes<kCodedPanels> : multiply_codes<1>)(m, s.x, panel, at);
      sum_stride = wide * kPanel;
      finish(0, s.x.count, panel, panel + wide, reinterpret_cast<const uint32_t*>(at));
      panel += wide;
    }
  }

  // How much at a time. Few tokens stay in the second cache while panels stream by; many tokens stream by a block of panels.
  void plan() {
    const bool one_tile = s.x.count <= kMaxTokens, few = s.x.count * s.x.steps * 4 <= shares.stream_bytes;
    turned = m.opened() || m.format == Format::bf12 || (!__is_same(Op, Wide) && s.x.count > Op::kDirect);
    const int64_t wide = panels_for(static_cast<int>(smaller(s.x.count, kMaxTokens)));
    block = wide * (one_tile ? 1 : few && !turned ? 1 : 4);
    const int64_t unit = m.format == Format::int5 ? 96 : 128;  // a multiple of all groups
    const int64_t wanted = turned ? (one_tile ? shares.short_piece : shares.piece) : shares.stream_bytes / (block * 64) * m.block();
    piece = m.opened() && one_tile ? kOpenedPiece : larger(wanted / unit, 1) * unit;
    many_pieces = m.inputs > piece;
    sum_stride = block * kPanel;
    const int64_t turned_bytes = turned ? block * lines_of(smaller(piece, m.inputs)) * kTurnedSteps * 64 : 0;
    const int64_t opening = m.opened() ? opening_bytes(m) : 0;
    const int64_t held = many_pieces ? smaller(s.x.count, shares.block_tokens) : kMaxTokens;
    buffer = reinterpret_cast<uint8_t*>(scratch.need(turned_bytes + held * block * kPanel * 4 + opening));
    sums = reinterpret_cast<uint32_t*>(buffer + turned_bytes);
    beside = reinterpret_cast<char*>(sums + held * block * kPanel);
    if (s.gated) block /= 2, panels_apart = s.rows() / kPanel;  // pairs of panels
  }

  int64_t lines_of(int64_t inputs) const { return (inputs + m.block() - 1) / m.block(); }

  void run_block(int64_t token, int64_t end_token, int64_t panel, int64_t end_panel) {
    for (int64_t first = 0; first < m.inputs; first += piece) {
      const Piece p = make_piece(panel, end_panel, first);
      const int64_t tiles = (end_token - token + kMaxTokens - 1) / kMaxTokens;
      for (int64_t t = token, i = 0; i < tiles; ++i) {
        const int64_t count = (end_token - t + tiles - i - 1) / (tiles - i);  // tiles of nearly equal height
        uint32_t* const at = sums + (many_pieces ? (t - token) * sum_stride : 0);
        if (turned) run_row<Wide>(p, t, static_cast<int>(count), panel, end_panel, at, i, tiles);
        else run_row<Op>(p, t, static_cast<int>(count), panel, end_panel, at, i, tiles);
        if (!many_pieces) finish(t, t + count, panel, end_panel, at);
        t += count;
      }
    }
    if (many_pieces) finish(token, end_token, panel, end_panel, sums);
  }

  Piece make_piece(int64_t panel, int64_t end_panel, int64_t first) const {
    const int64_t lines = lines_of(smaller(piece, m.inputs - first)), stride = lines * kTurnedSteps * 64;  // stride: of turned ones
    if (m.opened()) {
      for (int64_t p = panel; p < end_panel; ++p)
        open_panel(m, p, first, lines, reinterpret_cast<float*>(buffer + (p - panel) * stride), beside);
      return {buffer, stride, first, lines, nullptr};
    }
    const uint8_t* const data = m.data + panel * m.panel_bytes() + first / m.block() * 64;
    const uint8_t* next = end_panel < end_of_slice ? m.data + end_panel * m.panel_bytes() : follows() ? s.next.data : nullptr;
    if (first + piece < m.inputs) next = data + lines * 64;
    if (!turned) return {data, m.panel_bytes(), first, lines, next};
    for (int64_t p = panel; p < end_panel; ++p) {
      if (m.format == Format::bf12) open_turned(p, first / m.block(), lines, buffer + (p - panel) * stride);
      else turn_lines<Op>(data + (p - panel) * m.panel_bytes(), lines, buffer + (p - panel) * stride);
    }
    return {buffer, stride, first, lines * kTurnedSteps, next};
  }

  // Whether the panels after this slice can be asked for as its own are: they are as long, and those of pairs as far apart.
  bool follows() const {
    return s.next.panel_bytes >= m.panel_bytes() && (!s.gated || s.next.apart == panels_apart * m.panel_bytes());
  }

  // Lines of bf12, which become bf16's and then, unless tiles take those, what Op makes of them.
  void open_turned(int64_t panel, int64_t first, int64_t lines, uint8_t* to) const {
    ChunkLines chunks(m, panel, first);
    if (kTurnedSteps == 1 && lines % kChunkLines == 0) return chunks.open<true>(lines, to);
    alignas(64) uint8_t some[kOpenedLines * 64];
    for (int64_t line = 0; line < lines; line += kOpenedLines) {
      const int64_t here = smaller(kOpenedLines, lines - line);
      chunks.open<true>(here, some);
      if (kTurnedSteps == 1) memcpy(to + line * 64, some, here * 64);
      else turn_lines<Op, false>(some, here, to + line * kTurnedSteps * 64);
    }
  }

  // Tile number i of `tiles` over a piece: one row of tokens, panel after panel.
  template <class O>
  void run_row(const Piece& p, int64_t token, int count, int64_t panel, int64_t end_panel, uint32_t* at, int64_t i,
               int64_t tiles) const {
    static constexpr Tiles<O, kGrouped> table;
    const int64_t inputs_of_line = turned ? m.block() / kTurnedSteps : m.block();
    const int64_t group = kGrouped ? p.first / m.group : 0;
    Tile tile;
    tile.panel_stride = panels_apart * p.panel_stride;
    tile.token = s.x.data + token * s.x.steps + p.first / inputs_of_line * O::kSteps;
    tile.token_stride = s.x.steps;
    tile.lines = p.lines;
    tile.sum_stride = sum_stride;
    tile.add = p.first > 0;
    tile.scale_stride = m.groups();
    tile.token_scales = s.x.scales ? s.x.scales + token * tile.scale_stride + group : nullptr;
    tile.token_sums = s.x.sums ? s.x.sums + token * tile.scale_stride + group : nullptr;
    tile.wide_scales = m.wide_scales;
    tile.middle = static_cast<int32_t>(m.middle());
    tile.group_stride = panels_apart * tile.scale_stride * kPanel;
    if (kGrouped) tile.lines_of_group = m.group / inputs_of_line;
    if constexpr (O::kDirect >= kMaxTokens)
      if (s.gated) return run_pairs(table, tile, p, count, panel, end_panel, at, group, i, tiles);
    const int wide = panels_for(count);
    for (int64_t q = panel; q < end_panel;) {
      const bool many = q + wide <= end_panel;
      at_panel(tile, p, q, group, at + (q - panel) * kPanel, panel);
      fetch_ahead(tile, p, q - panel, i, tiles);
      (many ? table.wide : table.narrow)[count](tile);
      q += many ? wide : 1;
    }
  }

  // The same for pairs of a panel of the first half of the rows and one of the second, side by side in the sums.
  template <class Table>
  void run_pairs(const Table& table, Tile& tile, const Piece& p, int count, int64_t panel, int64_t end_panel, uint32_t* at,
                 int64_t group, int64_t i, int64_t tiles) const {
    for (int64_t q = panel; q < end_panel; ++q, at += 2 * kPanel) {
      at_panel(tile, p, q, group, at, panel);
      fetch_ahead(tile, p, q - panel, i, tiles);
      if (panels_for(count) == 2) {
        table.wide[count](tile);
        continue;
      }
      table.narrow[count](tile);
      at_panel(tile, p, q + panels_apart, group, at + kPanel, panel);
      fetch_ahead(tile, p, q - panel + panels_apart, i, tiles);
      table.narrow[count](tile);
    }
  }

  // The tile goes to panel q, whose sums go to `to`.
  void at_panel(Tile& tile, const Piece& p, int64_t q, int64_t group, uint32_t* to, int64_t first_panel) const {
    if (kGrouped) {
      const int64_t first = q * tile.scale_stride * kPanel + group * kPanel;
      tile.scales = static_cast<const char*>(m.scales) + first * (m.wide_scales ? 4 : 2);
      tile.zeros = m.zeros ? m.zeros + first : nullptr;
    }
    tile.panel = p.panels + (q - first_panel) * p.panel_stride;
    tile.ahead = tile.panel, tile.ahead_step = 0;
    tile.sums = to;
  }

  // The tiles over a piece share the fetching of the next. (Fetching an address past the end of the data does nothing.)
  void fetch_ahead(Tile& tile, const Piece& p, int64_t q, int64_t i, int64_t tiles) const {
    const bool fetch = !turned && p.next != nullptr && tiles <= 16;
    tile.ahead_step = fetch ? (64 + tiles - 1) / tiles : 0;
    tile.ahead = fetch ? p.next + q * p.panel_stride + i * p.lines * tile.ahead_step : tile.panel;
  }

  void finish(int64_t token, int64_t end_token, int64_t panel, int64_t end_panel, const uint32_t* at) const {
    constexpr bool kIntegers = __is_same(typename Op::Sum, IntVec) && !kGrouped;
    int64_t p = panel;
#if PAGODA_DPBF16
    if (s.gated)
      for (; p < end_panel; ++p, at += 2 * kPanel) finish_gated<kIntegers>(s, token, end_token, p, at, sum_stride);
    else if (s.dtype == Dtype::bf16 && !s.wide && s.x.rank == 0)
      for (; p + 2 <= end_panel && (p + 2) * kPanel <= m.outputs; p += 2, at += 2 * kPanel)
        finish_pair<kIntegers>(s, token, end_token, p, at, sum_stride);
#endif
    for (; p < end_panel; ++p, at += kPanel) {
      if (s.dtype == Dtype::f32) finish_panel<kIntegers, float>(s, token, end_token, p, at, sum_stride);
      else if (s.wide) finish_panel<kIntegers, uint16_t, float>(s, token, end_token, p, at, sum_stride);
      else finish_panel<kIntegers, uint16_t>(s, token, end_token, p, at, sum_stride);
    }
  }

  const LinearSlice& s;
  const PackedMatrix& m;
  const Shares shares{caches()};
  bool turned = false, many_pieces = false;
  int64_t block = 0, piece = 0, sum_stride = 0, end_of_slice = 0;
  int64_t panels_apart = 1;  // between the panels of a tile: neighbours, or the two that a gate joins
  uint8_t* buffer = nullptr;
  uint32_t* sums = nullptr;
  char* beside = nullptr;  // what opening needs
};

template <class Op, class Wide, bool kGrouped = false>
void run(const LinearSlice& s, int64_t first, int64_t end) {
  Product<Op, Wide, kGrouped>(s).run(first, end);
}

}  // namespace

namespace PAGODA_ISA {

void packed_rows(const LinearSlice& s, int64_t first_row, int64_t end_row) {
  const int64_t first = first_row / kPanel, end = (end_row + kPanel - 1) / kPanel;
  if (s.x.count == 0 || first >= end) return;
  const Format format = s.matrix.format;
  if (s.x.operand == Operand::s8) {
    if (format == Format::int8) return run<Quads<8>, Quads<8>>(s, first, end);
    if (format == Format::int4) return run<Quads<4>, Quads<4>, true>(s, first, end);
    return run<Quads<2>, Quads<2>>(s, first, end);
  }
#if PAGODA_DPBF16
  if (s.x.operand == Operand::bf16) {
    if (format == Format::bf16 || format == Format::bf12) return run<Pairs, Pairs>(s, first, end);
    if (format == Format::int8) return run<PairsOf<8>, Pairs>(s, first, end);
    if (format == Format::int4) return run<PairsOf<4>, Pairs, true>(s, first, end);
    if (format == Format::int5) return run<PairsOf<5>, Pairs, true>(s, first, end);
    if (format == Format::fp8) return run<PairsOfE4M3, Pairs>(s, first, end);
    return run<PairsOf<2>, Pairs>(s, first, end);
  }
#endif
  if (format == Format::fp32 || s.matrix.opened()) return run<Floats, Floats>(s, first, end);
  if (format == Format::bf16 || format == Format::bf12) {
    if constexpr (FloatsOf<16>::kDirect >= kMaxTokens) return run<FloatsOf<16>, FloatsOf<16>>(s, first, end);
    else return run<FloatsOf<16>, Floats>(s, first, end);
  }
  if (format == Format::int8) return run<FloatsOf<8>, Floats>(s, first, end);
  if (format == Format::int4) return run<FloatsOf<4>, Floats, true>(s, first, end);
  if (format == Format::int5) return run<FloatsOf<5>, Floats, true>(s, first, end);
  if (format == Format::fp16) return run<FloatsOfHalves, Floats>(s, first, end);
  if (format == Format::fp8) return run<FloatsOfE4M3, Floats>(s, first, end);
  if (format == Format::nf4) return run<FloatsOfLevels, Floats, true>(s, first, end);
  return run<FloatsOf<2>, Floats>(s, first, end);
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
