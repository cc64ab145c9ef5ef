// Slices of rows of a product with a packed weight, in tiles of AMX (tile_pass.hpp, tiles.hpp, packed.hpp).
//
// Few tokens follow the weights once through memory. More of them pass by pieces of a pair of panels that stay in the first cache:
//
//   a block: 4 pairs of panels        for each piece of the inputs, 16 tiles of two panels (32 KB of the first cache)
//                                       for each pair of the block
//                                         for each group of up to 32 tokens (from the second cache, sums too)
//
// What has to be turned is turned for all groups at once, in place, where the piece before has just been multiplied for the last time:
//
//   last group of a piece     tile 0 │ 1 │ 2 │ …      behind each tile the next piece's lines of the first panel
//   first group of the next   tile 0 │ 1 │ 2 │ …      a tile ahead its lines of the second panel
//
// A result's sum runs over the tiles of inputs in one order, whoever shares its tile and wherever the inputs are cut into pieces, so its bits
// depend on its token and row alone: every number of tokens is multiplied so, one too. Memory limits that as before in bfloat16 (14 GB/s
// either way); lines that are turned cost it: int8 780 us and 735 by vectors, ternary of two bits 1077 and 806 ([6912, 2560]).
// Sums of int8 are those of every other instruction set, sums of bfloat16 pairs are rounded elsewhere.

#include <type_traits>

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

// Results of a pair of panels, left over by its pass: those of some tokens are finished after each tile of the next pass, so that weights are read
// meanwhile. (Finished at once they took 0.3 to 0.4 us a pair of 32 tokens, beside 3.4 in which its 896 inputs are read; the reading that they had
// kept waiting cost as much again.)
template <bool kIntegers>
class LeftOver {
 public:
  explicit LeftOver(const LinearSlice& slice) : s(slice) {}

  // What a pass of tokens first..stop left at `from`, to be finished in `calls` of some(): kSome tokens at once, or more, since one by one they cost
  // twice the instructions.
  void take(int64_t first, int64_t stop, int64_t panel, int64_t panels, const uint32_t* from, int64_t calls) {
    all();
    first_panel = panel, num_panels = panels, sums = from, next = first, end = stop;
    tokens = larger(kSome, (stop - first + calls - 1) / larger(calls, 1));
  }
  void some() {
    if (next < end) finish(smaller(end, next + tokens));
  }
  void all() {
    if (next < end) finish(end);
  }

 private:
  __attribute__((noinline)) void finish(int64_t stop) {
    finish_tiles<kIntegers>(s, next, stop, first_panel, num_panels, sums);
    sums += (stop - next) * kPairWords, next = stop;
  }

  static constexpr int64_t kSome = 4;

  const LinearSlice& s;
  const uint32_t* sums = nullptr;
  int64_t first_panel = 0, num_panels = 0, tokens = 0;
  int64_t next = 0, end = 0;  // tokens whose results are left
};

// Op: how lines become what is multiplied, at once where kSteps is 1.
template <class Op>
class TileProduct {
 public:
  explicit TileProduct(const LinearSlice& slice)
      : s(slice), m(slice.matrix), words(m.blocks() * Op::kSteps), panel_bytes(m.panel_bytes()), behind(slice.next) {
    const Caches sizes = caches();
    const int64_t all = larger((words + kTileWords - 1) / kTileWords, 1);
    apart = s.gated ? s.rows() / kPanel : 1;
    few = s.x.count <= kTileTokens, leaves = s.x.count > kTileRows;
    groups = (s.x.count + kTileTokens - 1) / kTileTokens, group_tokens = (s.x.count + groups - 1) / groups;
    const int64_t most = few ? all : larger(sizes.first / 3 * 2 / (2 * kLineTile), 1), pieces = (all + most - 1) / most;
    piece_tiles = (all + pieces - 1) / pieces;
    many_pieces = piece_tiles < all;
    const bool fits = s.x.count * s.x.steps * 4 < sizes.second / 4 * 3;
    block = few ? 1 : fits ? kBlockPairs : kLongBlockPairs;
    const int64_t turned_bytes = kTurned ? (few ? kRing : piece_tiles) * 2 * kLineTile : 0;
    const int64_t held = many_pieces ? groups * block * kTileTokens * kPairWords * 4 : 0;
    char* const memory = scratch.need(turned_bytes + held + kTileTokens * (2 * kPairWords + 16) * 4 + kTileTokens * kTileBytes + 2 * kLineTile);
    turned = reinterpret_cast<uint8_t*>(memory);
    sums = reinterpret_cast<uint32_t*>(memory + turned_bytes);
    results = sums + held / 4;
    starts = results + 2 * kTileTokens * kPairWords;
    last_tokens = reinterpret_cast<uint8_t*>(starts + kTileTokens * 16);
    last_panels = last_tokens + kTileTokens * kTileBytes;
    memset(starts, 0, kTileTokens * 64);
  }

  void run(int64_t first, int64_t end) {
    end_panel = end;
    const TileScope tiles(shapes_for(group_tokens));
    if constexpr (kTurned)
      if (!few) opening.begin(m, panel_bytes, first, 0, tiles_from(0), turned), opening.all();
    for (Place at{first, first, 0}; at.panel < end_panel; at = after(at)) {
      if (few && after(at).panel >= end_panel) go_on();
      // Groups are of one size, the last one may share tokens with that before it (with the same bits): one shape of tiles serves all.
      for (int64_t group = 0; group < groups; ++group) multiply(at, group, smaller(group * group_tokens, s.x.count - group_tokens));
    }
    left_over.all();
  }

 private:
  // Tokens that do not fit into the second cache are read anew by each block (256 tokens of 8192 inputs: blocks of 4 take an eighth longer).
  static constexpr int64_t kBlockPairs = 4, kLongBlockPairs = 8;
  static constexpr bool kTurned = Stored<Op>::kTurned, kIntegers = __is_same(typename Op::Sum, IntVec);

  // A pair of panels and a piece of its inputs: of the block that begins at panel `first`, from line `word` on.
  struct Place {
    int64_t first, panel, word;
  };

  int64_t width() const { return s.gated ? 1 : 2; }  // panels of the slice in a pair
  int64_t piece() const { return piece_tiles * kTileWords; }
  int64_t lines_from(int64_t word) const { return smaller(piece(), words - word); }
  int64_t tiles_from(int64_t word) const { return lines_from(word) / kTileWords; }  // whole ones

  Place after(const Place& at) const {
    const int64_t next = at.first + block * width();
    if (at.panel + width() < smaller(next, end_panel)) return {at.first, at.panel + width(), at.word};
    if (at.word + piece() < words) return {at.first, at.first, at.word + piece()};
    return {next, next, 0};
  }

  // Takes what follows the slice, if anything does, before its last pair: nothing stops then. (Results of 32 tokens finished while nobody waits for memory, and
  // the way back into it, ten times a product: 1.5 % of a step's products.)
  void go_on() {
    if (s.further.take) end_panel = (s.further.take(s.further.share, &behind) + kPanel - 1) / kPanel;
  }

  void multiply(const Place& at, int64_t group, int64_t token) {
    const int64_t q = at.panel, whole = tiles_from(at.word), left = lines_from(at.word) % kTileWords, i = (q - at.first) >> (s.gated ? 0 : 1);
    const bool both = s.gated || q + 1 < end_panel, last = at.word + piece() >= words;
    if (at.word == 0 && kIntegers) begin(token);
    if (left) keep_last_tokens(token, at.word + whole * kTileWords, left);
    Pass p{};
    p.tokens = reinterpret_cast<const uint8_t*>(s.x.data + token * s.x.steps + at.word / kTileWords * s.x.tile_steps);
    p.token_bytes = s.x.steps * 4, p.tile_bytes = s.x.tile_steps * 4;
    p.tiles = whole, p.begins = at.word == 0;
    p.last_tokens = left ? last_tokens : nullptr, p.last_panels = last_panels;
    const bool before = kTurned && !few;
    p.panels = before ? turned : m.data + q * panel_bytes + Stored<Op>::bytes(at.word);
    p.panel_bytes = before ? kLineTile : apart * panel_bytes, p.line_bytes = (before ? 2 : 1) * kLineTile, p.ring = turned;
    p.matrix = &m, p.matrix_panel_bytes = panel_bytes, p.panel = q, p.apart = apart, p.line = at.word;
    if (left && group == 0) keep_last_panels(p, both, left);
    uint32_t* const held = sums + (group * block + i) * kTileTokens * kPairWords;
    if (last) second_results = !second_results;
    p.from = p.begins ? starts : held, p.to = !last ? held : results + second_results * kTileTokens * kPairWords;
    if (few) follow(p, q + width() < end_panel ? q + width() : -1);
    else fetch_ahead(p, at, group);
    if constexpr (kTurned)
      if (!few) open(at, group, both);
    pass(p, both);
    if constexpr (kTurned) opening.all();
    if (!last) return;
    if (leaves) left_over.take(token, token + group_tokens, q, both ? 2 : 1, p.to, whole);
    else finish_tiles<kIntegers>(s, token, token + group_tokens, q, both ? 2 : 1, p.to);
  }

  // What is turned beside a group's products (above).
  void open(const Place& at, int64_t group, bool both) {
    if (group == 0 && both) {
      opening.begin(m, panel_bytes, at.panel + apart, at.word, tiles_from(at.word), turned + kLineTile);
      opening.tile();
    }
    if (group + 1 < groups) return;
    const Place next = after(at);
    if (next.panel < end_panel) opening.begin(m, panel_bytes, next.panel, next.word, tiles_from(next.word), turned);
  }

  // What sums of integers begin with, to make up for the stored offset; others begin with zeros.
  void begin(int64_t token) {
    for (int64_t t = 0; t < group_tokens; ++t) {
      const UintVec first = splat_word(s.x.sums[token + t]);
      memcpy(starts + t * 16, &first, sizeof first);
    }
  }

  void keep_last_tokens(int64_t token, int64_t word, int64_t words) {
    for (int64_t t = 0; t < group_tokens; ++t) {
      memset(last_tokens + t * kTileBytes, 0, kTileBytes);
      memcpy(last_tokens + t * kTileBytes, s.x.data + (token + t) * s.x.steps + word, words * 4);
    }
  }

  void keep_last_panels(const Pass& p, bool both, int64_t lines) {
    for (int64_t i = 0; i < (both ? 2 : 1); ++i) {
      if (kTurned) Stored<Op>(m, panel_bytes, p.panel + i * apart, p.line + p.tiles * kTileWords).template turn<true>(lines, last_panels + i * kLineTile);
      else memcpy(last_panels + i * kLineTile, p.panels + i * p.panel_bytes + p.tiles * kLineTile, lines * 64);
      memset(last_panels + i * kLineTile + lines * 64, 0, kLineTile - lines * 64);
    }
  }

  // Few tokens: panel `next` comes after these, or what follows the slice.
  void follow(Pass& p, int64_t next) const {
    p.end = p.panels + panel_bytes;
    p.then = next >= 0 ? m.data + next * panel_bytes : p.panels, p.then_panel = apart * panel_bytes;
    if (next < 0 && behind.data) p.then = behind.data, p.then_panel = behind.apart;
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

  // More: the groups share the fetching of the pair and piece after the next. (An address past the end of the data does nothing.)
  void fetch_ahead(Pass& p, const Place& at, int64_t group) const {
    const Place then = after(after(at));
    const int64_t passes = groups * larger(p.tiles, 1);
    p.ahead_lines = then.panel < end_panel ? (Stored<Op>::bytes(lines_from(then.word)) / 64 + passes - 1) / passes : 0;
    p.ahead = m.data + then.panel * panel_bytes + Stored<Op>::bytes(then.word) + group * p.tiles * p.ahead_lines * 64;
    p.ahead_panel = apart * panel_bytes;
  }

  void pass(const Pass& p, bool both) {
    const auto finish_some = [this] { left_over.some(); };
    const auto nothing = [] {};
    NothingOpens none;
    if (few) {
      using Turn = std::conditional_t<kTurned, OnTheWay<Op>, AsTheyAre>;
      if (!leaves) both ? run_pass<kIntegers, false, true, Turn>(p, none, nothing) : run_pass<kIntegers, false, false, Turn>(p, none, nothing);
      else both ? run_pass<kIntegers, true, true, Turn>(p, none, finish_some) : run_pass<kIntegers, true, false, Turn>(p, none, finish_some);
    } else {
      both ? run_pass<kIntegers, true, true, InPieces>(p, opening, finish_some) : run_pass<kIntegers, true, false, InPieces>(p, opening, finish_some);
    }
  }

  const LinearSlice& s;
  const PackedMatrix& m;
  const int64_t words, panel_bytes;      // of a panel; kept, since each is a division
  std::conditional_t<kTurned, Opening<Op>, NothingOpens> opening;
  int64_t end_panel = 0;                // of the slice
  Following behind;                     // it
  int64_t groups = 0, group_tokens = 0;  // of tokens, all of one size
  int64_t piece_tiles = 0, block = 0;  // tiles of inputs, pairs of panels at a time
  int64_t apart = 1;                   // between the panels of a pair: neighbours, or the two that a gate joins
  bool few = false, many_pieces = false, leaves = false, second_results = false;
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
