// Slices of rows of grouped int4 by tokens in 8 bits, on AMX (see packed.hpp and grouped_tiles.hpp).
//
// The codes of a pair of panels are opened to bytes a piece at a time and stay in the first cache while all tokens come by, 32 after the other;
// the codes of the next piece and the lines of the results are fetched meanwhile. (Four panels at a time drove the tokens out: tiles of the
// first pair after it was opened took 230 ns a group of 128 inputs, of the second 136.)

#include "grouped_tiles.hpp"
#include "packed_results.hpp"

namespace pagoda {
namespace {

constexpr int64_t kFewTokens = 12;   // up to which the bodies without tiles are as fast: they open nothing
// Inputs opened at a time. Of 512 a pair of panels and 32 tokens fill two thirds of the first cache, best for few tokens; for many, whose
// panels stay there anyway, the beginning and the end of a piece weigh more.
constexpr int64_t kShortPiece = 512, kLongPiece = 1024, kShortTokens = 64;

class GroupedProduct {
 public:
  GroupedProduct(const LinearSlice& slice, int64_t last_panel)
      : s(slice), m(slice.matrix), end_of_slice(last_panel), half(slice.gated ? slice.rows() / kPanel : 0), short_group(m.inputs / m.group * m.group),
        piece_inputs(s.x.count <= kShortTokens ? kShortPiece : kLongPiece),
        scope(grouped_shapes(smaller(slice.x.count, kTileTokens), m.group)) {
    const int64_t opened_bytes = 2 * piece_inputs * kPanel, sum_bytes = s.x.count * kSumStride * 4;
    opened = reinterpret_cast<uint8_t*>(scratch.need(opened_bytes + sum_bytes + s.x.count * m.group));
    sums = reinterpret_cast<uint32_t*>(opened + opened_bytes);
    rest = reinterpret_cast<uint8_t*>(sums) + sum_bytes;
    if (short_group < m.inputs) copy_rest();
  }

  void run(int64_t first_panel) {
    const int64_t width = half ? 1 : 2;
    for (int64_t panel = first_panel; panel < end_of_slice; panel += width) run_pair(panel, smaller(end_of_slice, panel + width));
  }

 private:
  struct Piece {
    int64_t panel, end_panel;  // of the result
    int64_t panels;            // of the matrix: two, or the last one
    int64_t first, inputs;     // whole groups
    int64_t after;             // the first input behind them
  };

  // The tokens' inputs in a last group that is short, zeros behind them: tiles read whole groups.
  void copy_rest() {
    const int64_t words = m.blocks() * 2 - short_group / 4;  // two of them are a block of eight
    for (int64_t t = 0; t < s.x.count; ++t) {
      memset(rest + t * m.group, 0, m.group);
      memcpy(rest + t * m.group, s.x.data + t * s.x.steps + short_group / 4, words * 4);
    }
  }

  // A pair of panels side by side: neighbours, or with gated SiLU a gate and what it gates.
  void run_pair(int64_t panel, int64_t end_panel) {
    const int64_t panels = half ? 2 : end_panel - panel;
    for (int64_t first = 0, after; first < m.inputs; first = after) {
      const bool is_short = first == short_group;
      const int64_t inputs = is_short ? m.group : smaller(piece_inputs, short_group - first);
      after = is_short ? m.inputs : first + inputs;
      const Piece piece{panel, end_panel, panels, first, inputs, after};
      for (int64_t i = 0; i < panels; ++i) open(piece, i);
      tile_fence();
      for (int64_t t = 0; t < s.x.count; t += kTileTokens) run_tokens(piece, t, smaller(kTileTokens, s.x.count - t));
    }
  }

  void open(const Piece& piece, int64_t i) const {
    const int64_t panel = piece.panel + i * (half ? half : 1), first = piece.first / 8;
    const int64_t lines = piece.inputs / 8, stored = smaller(lines, m.blocks() - first);
    const uint8_t* const zeros = m.zeros ? m.zeros + (panel * m.groups() + piece.first / m.group) * kPanel : nullptr;
    uint8_t* const to = opened + i * piece.inputs * kPanel;
    open_codes(m.data + panel * m.panel_bytes() + first * 64, stored, m.group / 8, zeros, to);
    memset(to + stored * 128, 0, (lines - stored) * 128);
  }

  void run_tokens(const Piece& piece, int64_t token, int64_t count) {
    const bool lower = count < smaller(s.x.count, kTileTokens);  // the last of many
    if (lower) scope.reshape(grouped_shapes(count, m.group));
    const int64_t groups = m.groups(), group = piece.first / m.group;
    Tile tile;
    tile.panel_stride = piece.inputs * kPanel;
    tile.token = s.x.data + token * s.x.steps + piece.first / 4, tile.token_stride = s.x.steps;
    if (piece.first == short_group) tile.token = reinterpret_cast<uint32_t*>(rest + token * m.group), tile.token_stride = m.group / 4;
    tile.lines = piece.inputs / 4, tile.lines_of_group = m.group / 4;
    tile.sum_stride = kSumStride, tile.add = piece.first > 0;
    tile.wide_scales = m.wide_scales;
    tile.group_stride = (half ? half : 1) * groups * kPanel;
    tile.scale_stride = groups, tile.token_scales = s.x.scales + token * groups + group;
    uint32_t* const at = sums + token * kSumStride;
    tile.panel = opened;
    tile.scales = static_cast<const char*>(m.scales) + (piece.panel * groups + group) * kPanel * (m.wide_scales ? 4 : 2);
    tile.sums = at;
    (piece.panels == 2 ? run_grouped_tile<2> : run_grouped_tile<1>)(tile, static_cast<int>(count), ahead_of(piece, token, count));
    if (piece.after == m.inputs) finish_tiles<false>(s, token, token + count, piece.panel, piece.panels, at);
    if (lower) scope.reshape(grouped_shapes(kTileTokens, m.group));
  }

  // What these tiles fetch: their share of what is opened next (the same panels' inputs behind these, or the first inputs of the next
  // panels), and where results go.
  Ahead ahead_of(const Piece& piece, int64_t token, int64_t count) const {
    const int64_t steps = piece.inputs / smaller(m.group, kTileBytes), tiles = (s.x.count + kTileTokens - 1) / kTileTokens;
    const bool last = piece.after == m.inputs;
    const int64_t panel = last ? piece.end_panel : piece.panel, input = last ? 0 : piece.after;
    Ahead ahead{};
    if (panel < end_of_slice) {
      const int64_t lines = smaller(piece_inputs, m.inputs - input) / 8, share = (lines + tiles * steps - 1) / (tiles * steps);
      const int64_t done = token / kTileTokens * steps * share;
      ahead.codes = m.data + panel * m.panel_bytes() + (input / 8 + done) * 64;
      ahead.panels_apart = (half ? half : 1) * m.panel_bytes();
      ahead.lines = done < lines ? static_cast<int>(share) : 0;
    }
    if (last) {
      const int64_t width = s.wide ? 4 : size_of(s.dtype);
      ahead.results_apart = s.out_stride * width;
      ahead.results = static_cast<const char*>(s.out) + token * ahead.results_apart + piece.panel * kPanel * width;
      ahead.rows = static_cast<int>(count / steps);
    }
    return ahead;
  }

  const LinearSlice& s;
  const PackedMatrix& m;
  const int64_t end_of_slice, half;  // half: with gated SiLU, panels of the first rows
  const int64_t short_group;         // the first input of a last group that is short, or the end
  const int64_t piece_inputs;
  TileScope scope;
  uint8_t* opened = nullptr;
  uint32_t* sums = nullptr;
  uint8_t* rest = nullptr;
};

}  // namespace

namespace amx {

void grouped_tiles(const LinearSlice& s, int64_t first_row, int64_t end_row) {
  if (s.x.count <= kFewTokens) return avx512bf16::packed_rows(s, first_row, end_row);
  const int64_t first = first_row / kPanel, end = (end_row + kPanel - 1) / kPanel;
  if (first < end) GroupedProduct(s, end).run(first);
}

}  // namespace amx
}  // namespace pagoda
