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

// The pieces of a block that are multiplied next, turned meanwhile: some lines after each tile, since vectors have little to do beside products.
// (Pieces turned before they were multiplied added 92 ns for each KB of two panels, of which 38 are the turning itself and the rest is on the way
// between the first cache and the second.)
template <class Op, int64_t kPairs>
class Upcoming {
 public:
  // A block begins: pairs of panels first, first + apart and first + width, …
  void begin(const PackedMatrix& m, int64_t first, int64_t end, int64_t width, int64_t apart, bool gated) {
    count = 0, stands_alone = false;
    for (int64_t q = first; q < end; q += width)
      for (int64_t i = 0; i < 2; ++i, ++count) {
        if (gated || q + i < end) panels[count] = Stored<Op>(m, q + i * apart, 0);
        else stands_alone = true;
      }
  }

  // Its next `words` lines, to [pairs][2][stride bytes], the last tile filled up with zeros; in so many calls of some().
  void turn(int64_t words, uint8_t* to, int64_t stride, int64_t calls) {
    next = 0, line = 0, lines = words, out = to, apart_bytes = stride, num_calls = larger(calls, 1), credit = 0;
    units = count * ((words + kTileWords - 1) / kTileWords);
  }
  void nothing() { next = count = 0; }

  void some() {
    if (next == count) return;
    for (credit += units; credit >= num_calls; credit -= num_calls) turn_tile();
  }
  void all() {
    while (next < count) turn_tile();
  }

 private:
  __attribute__((noinline)) void turn_tile() {
    if (next == count) return;
    if (!stands_alone || next + 1 < count) {
      const int64_t here = smaller(kTileWords, lines - line);
      uint8_t* const to = out + next * apart_bytes + line * 64;
      panels[next].template turn<true>(here, to);
      if (here < kTileWords) memset(to + here * 64, 0, (kTileWords - here) * 64);
    }
    line += kTileWords;
    if (line >= lines) line = 0, ++next;
  }

  Stored<Op> panels[2 * kPairs];
  bool stands_alone = false;  // the last panel, without a second one
  int64_t count = 0, next = 0, line = 0, lines = 0, apart_bytes = 0, num_calls = 1, units = 0, credit = 0;
  uint8_t* out = nullptr;
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
    block = few ? 1 : kBlockPairs;
    const int64_t turned_bytes = kTurned ? (on_the_way() ? kRing : 2 * block * piece_tiles) * 2 * kLineTile : 0;
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
        if (kTurned && !on_the_way()) turn_next(first_panel, end_panel, width, panel, word);
        for (int64_t token = 0; token < s.x.count; token += kTileTokens) run_group(tiles, token, panel, end, end_panel, width, word, here);
      }
    }
    left_over.all();
  }

 private:
  static constexpr int64_t kBlockPairs = 4;
  static constexpr bool kTurned = Stored<Op>::kTurned, kIntegers = __is_same(typename Op::Sum, IntVec);

  bool on_the_way() const { return s.x.count <= Stored<Op>::kTokens; }
  uint8_t* turned_half(bool second) const { return turned + (second ? block * piece_tiles * 2 * kLineTile : 0); }

  // Before the pieces from `word` of the block at `panel` are multiplied: those are ready, and the next ones begin to be.
  void turn_next(int64_t first_panel, int64_t end_panel, int64_t width, int64_t panel, int64_t word) {
    const int64_t piece = piece_tiles * kTileWords, words = m.blocks() * Op::kSteps, groups = (s.x.count + kTileTokens - 1) / kTileTokens;
    const auto turn = [&](int64_t block_panel, int64_t block_word, bool half, int64_t calls) {
      if (block_word == 0) upcoming.begin(m, block_panel, smaller(end_panel, block_panel + block * width), width, apart, s.gated);
      upcoming.turn(smaller(piece, words - block_word), turned_half(half), piece_tiles * kLineTile, calls);
    };
    if (panel == first_panel && word == 0) turn(panel, 0, false, 1), second_half = true;
    upcoming.all();
    second_half = !second_half;
    const int64_t pairs = (smaller(end_panel - panel, block * width) + width - 1) / width, calls = groups * pairs * (smaller(piece, words - word) / kTileWords);
    if (word + piece < words) turn(panel, word + piece, !second_half, calls);
    else if (panel + block * width < end_panel) turn(panel + block * width, 0, !second_half, calls);
    else upcoming.nothing();
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
      const bool before = kTurned && !on_the_way();
      p.panels = before ? turned_half(second_half) + 2 * i * piece : m.data + q * m.panel_bytes() + Stored<Op>::bytes(word);
      p.panel_bytes = before ? piece : apart * m.panel_bytes(), p.ring = turned;
      p.matrix = &m, p.panel = q, p.apart = apart, p.line = word;
      if (left) keep_last_panels(p, both, left);
      uint32_t* const held = sums + (group * block + i) * kTileTokens * kPairWords;
      p.from = p.begins ? starts : held, p.to = !last ? held : results + q / width % 2 * kTileTokens * kPairWords;
      if (few) follow(p, q + width < end_of_slice ? q + width : -1);
      else if (!before) fetch_ahead(p, q, end == end_of_slice, word, words, group, groups);
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
      if (kTurned && on_the_way()) Stored<Op>(m, p.panel + i * apart, p.line + p.tiles * kTileWords).template turn<true>(lines, last_panels + i * kLineTile);
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
    const bool tall = count > kTileRows;
    const auto finish_some = [this] { left_over.some(); };
    const auto turn_some = [this] { upcoming.some(); };
    const auto nothing = [] {};
    if constexpr (kTurned) {
      if (few) return pass_as<OnTheWay<Op, true>>(p, tall, both, finish_some, nothing);
      if (on_the_way()) return pass_as<OnTheWay<Op, false>>(p, tall, both, nothing, nothing);
      return pass_as<InPieces>(p, tall, both, turn_some, turn_some);
    }
    few ? pass_as<AsTheyAre>(p, tall, both, finish_some, nothing) : pass_as<InPieces>(p, tall, both, nothing, nothing);
  }

  template <class Turn, class Tall, class Short>
  void pass_as(const Pass& p, bool tall, bool both, Tall with_many, Short with_few) {
    if (both) tall ? run_pass<kIntegers, true, true, Turn>(p, with_many) : run_pass<kIntegers, false, true, Turn>(p, with_few);
    else tall ? run_pass<kIntegers, true, false, Turn>(p, with_many) : run_pass<kIntegers, false, false, Turn>(p, with_few);
  }

  const LinearSlice& s;
  const PackedMatrix& m;
  Upcoming<Op, kBlockPairs> upcoming;
  bool second_half = false;            // of `turned`: what is multiplied lies there
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
