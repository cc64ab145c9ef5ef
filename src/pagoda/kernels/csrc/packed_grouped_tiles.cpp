// Slices of rows of grouped int4 and int5 on AMX (see packed.hpp, grouped_tiles.hpp and grouped_codes.hpp).
//
// One token is multiplied by vectors (grouped_row.hpp). Up to 32 of them follow the codes once through memory. For more of them the codes of
// a pair of panels are opened a piece at a time and stay in the first cache while all tokens come by, 32 after the other; the lines of the
// results are fetched meanwhile. (Four panels at a time drove the tokens out: tiles of the first pair after it was opened took 230 ns a group
// of 128 inputs, of the second 136.)

#include "grouped_row.hpp"

namespace pagoda {
namespace {

constexpr int64_t kFewTokens = 12;     // in 8 bits: up to which the bodies without tiles are as fast, with the same bits
// Bytes of a token, and lines of a panel, that meet at a time: the panels' half of the first cache.
constexpr int64_t kPieceBytes = 1024, kFewSlots = 2;

class GroupedProduct {
 public:
  GroupedProduct(const LinearSlice& slice, int64_t first, int64_t last_panel)
      : s(slice), m(slice.matrix), first_panel(first), end_of_slice(last_panel), half(slice.gated ? slice.rows() / kPanel : 0),
        whole_groups(m.inputs / m.group), group_bytes(m.group * (bytes ? 1 : 2)),
        piece_groups(s.x.count <= kTileTokens ? m.groups() : larger(kPieceBytes / group_bytes, 1)),
        codes(s, bytes, first_panel, last_panel, half ? 1 : 2, half ? half : 1, steps_of(group_bytes)),
        scope(grouped_shapes(smaller(slice.x.count, kTileTokens), group_bytes)) {
    const int64_t slots = s.x.count <= kTileTokens ? kFewSlots : piece_groups + 1;
    const int64_t opened_bytes = slots * codes.slot_bytes(), sum_bytes = s.x.count * kSumStride * 4;
    char* const memory = scratch.need(opened_bytes + sum_bytes + s.x.count * group_bytes);
    codes.open_into(reinterpret_cast<uint8_t*>(memory), slots);
    sums = reinterpret_cast<float*>(memory + opened_bytes);
    rest = reinterpret_cast<uint8_t*>(memory + opened_bytes + sum_bytes);
    if (whole_groups < m.groups()) copy_rest();
  }

  void run() {
    const int64_t width = half ? 1 : 2;
    int64_t number = 0;  // of a group in the stream of codes
    for (int64_t panel = first_panel; panel < end_of_slice; panel += width)
      for (int64_t group = 0, count; group < m.groups(); group += count, number += count) {
        count = group == whole_groups ? 1 : smaller(piece_groups, whole_groups - group);
        for (int64_t t = 0; t < s.x.count; t += kTileTokens)
          run_tokens({panel, half ? 2 : smaller(2, end_of_slice - panel), group, count, number}, t, smaller(kTileTokens, s.x.count - t));
      }
  }

 private:
  struct Piece {
    int64_t panel, panels;  // of the result; two, or the last one
    int64_t group, groups;  // whole ones, or a last one that is short
    int64_t number;         // in the stream of codes
  };

  // The tokens' inputs in a last group that is short, zeros behind them: tiles read whole groups.
  void copy_rest() {
    const int64_t before = whole_groups * group_bytes, left = m.blocks() * m.block() * (bytes ? 1 : 2) - before;
    for (int64_t t = 0; t < s.x.count; ++t) {
      memset(rest + t * group_bytes, 0, group_bytes);
      memcpy(rest + t * group_bytes, reinterpret_cast<const uint8_t*>(s.x.data + t * s.x.steps) + before, left);
    }
  }

  void run_tokens(const Piece& piece, int64_t token, int64_t count) {
    const bool lower = count < smaller(s.x.count, kTileTokens);  // the last of many
    if (lower) scope.reshape(grouped_shapes(count, group_bytes));
    const int64_t groups = m.groups(), steps = piece.groups * steps_of(group_bytes);
    GroupedPass pass{};
    pass.tokens = reinterpret_cast<const uint8_t*>(s.x.data + token * s.x.steps) + piece.group * group_bytes, pass.token_bytes = s.x.steps * 4;
    if (piece.group == whole_groups) pass.tokens = rest + token * group_bytes, pass.token_bytes = group_bytes;
    pass.codes = &codes, pass.first = piece.number, pass.groups = piece.groups, pass.opens = token == 0;
    pass.sums = sums + token * kSumStride, pass.add = piece.group > 0;
    pass.scales = static_cast<const char*>(m.scales) + (piece.panel * groups + piece.group) * kPanel * (m.wide_scales ? 4 : 2);
    pass.wide_scales = m.wide_scales, pass.group_stride = (half ? half : 1) * groups * kPanel;
    if (bytes) pass.token_scales = s.x.scales + token * groups + piece.group, pass.scale_stride = groups;
    const bool last = piece.group + piece.groups == groups;
    if (last) {
      const int64_t width = s.wide ? 4 : size_of(s.dtype);
      pass.results_apart = s.out_stride * width;
      pass.results = static_cast<const char*>(s.out) + token * pass.results_apart + piece.panel * kPanel * width;
      pass.rows = static_cast<int>(count), pass.rows_a_step = static_cast<int>((count + steps - 1) / steps);
    }
    const auto run = piece.panels == 2 ? (bytes ? run_grouped_pass<true, 2> : run_grouped_pass<false, 2>)
                                       : (bytes ? run_grouped_pass<true, 1> : run_grouped_pass<false, 1>);
    run(pass, static_cast<int>(count), steps_of(group_bytes));
    if (last) finish_tiles<false>(s, token, token + count, piece.panel, piece.panels, reinterpret_cast<const uint32_t*>(pass.sums));
    if (lower) scope.reshape(grouped_shapes(kTileTokens, group_bytes));
  }

  const LinearSlice& s;
  const PackedMatrix& m;
  const bool bytes = s.x.operand == Operand::s8;
  const int64_t first_panel, end_of_slice, half;  // half: with gated SiLU, panels of the first rows
  const int64_t whole_groups, group_bytes, piece_groups;
  const FlushScope flush{!bytes};
  CodeStream codes;
  TileScope scope;
  float* sums = nullptr;
  uint8_t* rest = nullptr;
};

}  // namespace

namespace amx {

void grouped_tiles(const LinearSlice& s, int64_t first_row, int64_t end_row) {
  if (s.x.count <= kFewTokens && s.x.operand == Operand::s8) return avx512bf16::packed_rows(s, first_row, end_row);
  const int64_t first = first_row / kPanel, end = (end_row + kPanel - 1) / kPanel;
  if (s.x.count == 0 || first >= end) return;
  if (s.x.count == 1 && s.x.operand == Operand::bf16) GroupedRow(s, first, end).run();
  else GroupedProduct(s, first, end).run();
}

}  // namespace amx
}  // namespace pagoda
