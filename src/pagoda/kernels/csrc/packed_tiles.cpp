// Slices of rows of a product with a packed weight, in tiles of AMX (tile_pass.hpp, tiles.hpp, packed.hpp).
//
// A result's sum runs over the tiles of inputs in one order, whoever shares its tile and wherever the inputs are cut into pieces, so its bits
// depend on its token and row alone: every number of tokens is multiplied so, one too. Memory limits that as before in bfloat16 (14 GB/s
// either way); lines that are turned cost it: int8 780 us and 735 by vectors, ternary of two bits 1077 and 806 ([6912, 2560]).
// Sums of int8 are those of every other instruction set, sums of bfloat16 pairs are rounded elsewhere.

#include "caches.hpp"
#include "packed_results.hpp"
#include "tile_pass.hpp"

namespace pagoda {
namespace {

// Tiles for so many tokens, up to kTileTokens.
TileShapes shapes_for(int64_t tokens) {
  const int first = static_cast<int>(smaller(tokens, kTileRows)), second = static_cast<int>(larger(tokens - kTileRows, 1));
  TileShapes shapes;
  for (int tile : {0, 1, 4}) shapes.set(tile, first);
  for (int tile : {2, 3, 5}) shapes.set(tile, second);
  for (int tile : {6, 7}) shapes.set(tile, kTileRows);
  return shapes;
}

// Results of a pair of panels, left over by its pass: those of some tokens are finished after each tile of the next pair, so that weights are read
// meanwhile. (Finished at once they took 0.3 to 0.4 us a pair of 32 tokens, beside 3.4 in which its 896 inputs are read; the reading that they had
// kept waiting cost as much again.)
template <bool kIntegers>
class LeftOver {
 public:
  explicit LeftOver(const LinearSlice& slice) : s(slice) {}

  // What a pass left at `from`, to be finished in `calls` of some().
  void take(int64_t panel, int64_t panels, const uint32_t* from, int64_t calls) {
    all();
    first_panel = panel, num_panels = panels, sums = from, next = 0, tokens = (s.x.count + calls - 1) / larger(calls, 1);
  }
  void some() {
    if (next < s.x.count) finish(smaller(s.x.count, next + tokens));
  }
  void all() {
    if (next < s.x.count) finish(s.x.count);
  }

 private:
  __attribute__((noinline)) void finish(int64_t end) {
    finish_tiles<kIntegers>(s, next, end, first_panel, num_panels, sums + next * kPairWords);
    next = end;
  }

  const LinearSlice& s;
  const uint32_t* sums = nullptr;
  int64_t first_panel = 0, num_panels = 0, tokens = 0;
  int64_t next = s.x.count;  // token; the number of them: nothing is left
};

// Op: how lines become what is multiplied, at once where kSteps is 1.
template <class Op>
class TileProduct {
 public:
  explicit TileProduct(const LinearSlice& slice) : s(slice), m(slice.matrix) {
    const Caches sizes = caches();
    const int64_t all = larger((m.blocks() * Op::kSteps + kTileWords - 1) / kTileWords, 1);
    apart = s.gated ? s.rows() / kPanel : 1;
    // Few tokens follow the weights once through memory, a pair of panels at a time, turned on the way. More of them meet blocks
    // of pairs: a piece of the group's inputs stays in the first cache while the pairs' pieces come from the second.
    few = s.x.count <= kTileTokens, leaves = few && s.x.count > kTileRows;
    const int64_t most = few ? all : larger(sizes.first / 3 / (2 * kLineTile), 1), pieces = (all + most - 1) / most;
    piece_tiles = (all + pieces - 1) / pieces;
    many_pieces = piece_tiles < all;
    block = few ? 1 : 4;
    const int64_t turned_bytes = kTurned ? (few ? kRing : block * piece_tiles) * 2 * kLineTile : 0;
    const int64_t held = many_pieces ? (s.x.count + kTileTokens - 1) / kTileTokens * block * kTileTokens * kPairWords * 4 : 0;
    char* const memory = scratch.need(turned_bytes + held + kTileTokens * (2 * kPairWords + 16) * 4 + kTileTokens * kTileBytes + 2 * kLineTile);
    turned = reinterpret_cast<uint8_t*>(memory);
    sums = reinterpret_cast<uint32_t*>(memory + turned_bytes);
    results = sums + held / 4;
    starts = results + 2 * kTileTokens * kPairWords;
    last_tokens = reinterpret_cast<uint8_t*>(starts + kTileTokens * 16);
    last_panels = last_tokens + kTileTokens * kTileBytes;
  }

  void run(int64_t first_panel, int64_t end_panel) {
    const int64_t width = s.gated ? 1 : 2;  // panels of the slice in a pair
    const TileScope tiles(shapes_for(smaller(s.x.count, kTileTokens)));
    for (int64_t panel = first_panel; panel < end_panel; panel += block * width) {
      const int64_t end = smaller(end_panel, panel + block * width), words = m.blocks() * Op::kSteps;
      for (int64_t word = 0; word < words; word += piece_tiles * kTileWords) {
        const int64_t here = smaller(piece_tiles * kTileWords, words - word);
        if (kTurned && !few) turn(panel, end, width, word, here);
        for (int64_t token = 0; token < s.x.count; token += kTileTokens) run_group(tiles, token, panel, end, end_panel, width, word, here);
      }
    }
    left_over.all();
  }

 private:
  static constexpr bool kTurned = Stored<Op>::kTurned, kIntegers = __is_same(typename Op::Sum, IntVec);

  // A block's pieces as they are multiplied, [pairs][2][tiles of lines], the last of them filled up with zeros.
  void turn(int64_t panel, int64_t end, int64_t width, int64_t word, int64_t words) {
    const int64_t stride = piece_tiles * kLineTile, padded = (words + kTileWords - 1) / kTileWords * kTileWords;
    for (int64_t q = panel, i = 0; q < end; q += width, ++i)
      for (int64_t p = 0; p < 2 && (s.gated || q + p < end); ++p) {
        uint8_t* const to = turned + (2 * i + p) * stride;
        Stored<Op>(m, q + p * apart, word).template turn<true>(words, to);
        memset(to + words * 64, 0, (padded - words) * 64);
      }
  }

  // Tokens token.. of a group meet the pairs of a block, panel..end.
  void run_group(const TileScope& tiles, int64_t token, int64_t panel, int64_t end, int64_t end_of_slice, int64_t width, int64_t word,
                 int64_t words) {
    const int64_t count = smaller(kTileTokens, s.x.count - token), whole = words / kTileWords, left = words % kTileWords;
    const int64_t groups = (s.x.count + kTileTokens - 1) / kTileTokens, group = token / kTileTokens;
    const bool last = word + words == m.blocks() * Op::kSteps;
    if (s.x.count > kTileTokens && (count < kTileTokens || token == 0)) tiles.reshape(shapes_for(count));
    if (word == 0) begin(token, count);
    if (left) keep_last_tokens(token, count, word + whole * kTileWords, left);
    Pass p{};
    p.tokens = reinterpret_cast<const uint8_t*>(s.x.data + token * s.x.steps + word / kTileWords * s.x.tile_steps);
    p.token_bytes = s.x.steps * 4, p.tile_bytes = s.x.tile_steps * 4;
    p.tiles = whole, p.begins = word == 0;
    p.last_tokens = left ? last_tokens : nullptr, p.last_panels = last_panels;
    for (int64_t q = panel, i = 0; q < end; q += width, ++i) {
      const bool both = s.gated || q + 1 < end;
      const int64_t piece = piece_tiles * kLineTile;
      const bool before = kTurned && !few;
      p.panels = before ? turned + 2 * i * piece : m.data + q * m.panel_bytes() + Stored<Op>::bytes(word);
      p.panel_bytes = before ? piece : apart * m.panel_bytes(), p.ring = turned;
      p.matrix = &m, p.panel = q, p.apart = apart;
      if (left) keep_last_panels(p, both, left);
      uint32_t* const held = sums + (group * block + i) * kTileTokens * kPairWords;
      p.from = p.begins ? starts : held, p.to = !last ? held : results + q / width % 2 * kTileTokens * kPairWords;
      if (few) follow(p, q + width < end_of_slice ? q + width : -1);
      else fetch_ahead(p, q, end == end_of_slice, word, words, group, groups);
      pass(p, count, both);
      if (leaves) left_over.take(q, both ? 2 : 1, p.to, words / kTileWords);
      else if (last) finish_tiles<kIntegers>(s, token, token + count, q, both ? 2 : 1, p.to);
    }
  }

  // What sums begin with: zeros, or what makes up for the stored offset.
  void begin(int64_t token, int64_t count) {
    for (int64_t t = 0; t < count; ++t) {
      const UintVec first = kIntegers ? splat_word(s.x.sums[token + t]) : UintVec{};
      memcpy(starts + t * 16, &first, sizeof first);
    }
  }

  void keep_last_tokens(int64_t token, int64_t count, int64_t word, int64_t words) {
    for (int64_t t = 0; t < count; ++t) {
      memset(last_tokens + t * kTileBytes, 0, kTileBytes);
      memcpy(last_tokens + t * kTileBytes, s.x.data + (token + t) * s.x.steps + word, words * 4);
    }
  }

  void keep_last_panels(const Pass& p, bool both, int64_t lines) {
    for (int64_t i = 0; i < (both ? 2 : 1); ++i) {
      if (kTurned && few) Stored<Op>(m, p.panel + i * apart, p.tiles * kTileWords).template turn<true>(lines, last_panels + i * kLineTile);
      else memcpy(last_panels + i * kLineTile, p.panels + i * p.panel_bytes + p.tiles * kLineTile, lines * 64);
      memset(last_panels + i * kLineTile + lines * 64, 0, kLineTile - lines * 64);
    }
  }

  // Few tokens: panel `next` comes after these, or what follows the slice.
  void follow(Pass& p, int64_t next) const {
    p.end = p.panels + m.panel_bytes();
    p.then = next >= 0 ? m.data + next * m.panel_bytes() : p.panels, p.then_panel = apart * m.panel_bytes();
    if (next < 0 && s.next.data) p.then = s.next.data, p.then_panel = s.next.apart;
    if constexpr (__is_same(Op, Chunks)) ask_for_windows(next);
  }

  // Exceptions of a pair are in two lines of their own, which nobody else asks for.
  void ask_for_windows(int64_t next) const {
    if (next < 0) return;
    for (int64_t i = 0; i < 2 && next + i * apart < m.panels(); ++i) {
      const Window* const window = m.windows + next + i * apart;
      ask_first(window->exceptions());
      ask_first(window + 8);
    }
  }

  // More: the groups share the fetching of what comes next, the next piece of these panels, or the first one of the next block's.
  // (An address past the end of the data does nothing.)
  void fetch_ahead(Pass& p, int64_t q, bool last_of_slice, int64_t word, int64_t words, int64_t group, int64_t groups) const {
    const bool here = word + words < m.blocks() * Op::kSteps;
    const int64_t panel = here ? q : q + block * (s.gated ? 1 : 2), passes = groups * larger(p.tiles, 1);
    p.ahead = m.data + panel * m.panel_bytes() + Stored<Op>::bytes(here ? word + words : 0);
    p.ahead_panel = apart * m.panel_bytes();
    p.ahead_lines = here || !last_of_slice ? (Stored<Op>::bytes(words) / 64 + passes - 1) / passes : 0;
    p.ahead += group * p.tiles * p.ahead_lines * 64;
  }

  void pass(const Pass& p, int64_t count, bool both) {
    if constexpr (kTurned)
      if (few) return pass_as<OnTheWay<Op>>(p, count > kTileRows, both);
    few ? pass_as<AsTheyAre>(p, count > kTileRows, both) : pass_as<InPieces>(p, count > kTileRows, both);
  }

  template <class Turn>
  void pass_as(const Pass& p, bool tall, bool both) {
    const auto some = [this] { left_over.some(); };
    const auto nothing = [] {};
    if (both) tall ? run_pass<kIntegers, true, true, Turn>(p, some) : run_pass<kIntegers, false, true, Turn>(p, nothing);
    else tall ? run_pass<kIntegers, true, false, Turn>(p, some) : run_pass<kIntegers, false, false, Turn>(p, nothing);
  }

  const LinearSlice& s;
  const PackedMatrix& m;
  int64_t piece_tiles = 0, block = 0;  // tiles of inputs, pairs of panels at a time
  int64_t apart = 1;                   // between the panels of a pair: neighbours, or the two that a gate joins
  bool few = false, many_pieces = false, leaves = false;
  LeftOver<kIntegers> left_over{s};
  uint8_t* turned = nullptr;
  uint32_t *sums = nullptr, *results = nullptr, *starts = nullptr;  // of pieces, [groups][pairs][kTileTokens][kPairWords]; of two passes; of one
  uint8_t *last_tokens = nullptr, *last_panels = nullptr;
};

template <class Op>
void run(const LinearSlice& s, int64_t first, int64_t end) {
  TileProduct<Op>(s).run(first, end);
}

}  // namespace

namespace amx {

void packed_tiles(const LinearSlice& s, int64_t first_row, int64_t end_row) {
  const int64_t first = first_row / kPanel, end = (end_row + kPanel - 1) / kPanel;
  if (s.x.count == 0 || first >= end) return;
  const Format format = s.matrix.format;
  if (s.x.operand == Operand::s8) return format == Format::int8 ? run<Quads<8>>(s, first, end) : run<Quads<2>>(s, first, end);
  if (format == Format::bf16) return run<Pairs>(s, first, end);
  if (format == Format::bf12) return run<Chunks>(s, first, end);
  if (format == Format::int8) return run<PairsOf<8>>(s, first, end);
  if (format == Format::fp8) return run<PairsOfE4M3>(s, first, end);
  return run<PairsOf<2>>(s, first, end);
}

}  // namespace amx
}  // namespace pagoda
