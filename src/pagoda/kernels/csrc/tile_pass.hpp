// A pair of panels times a group of tokens, in tiles of AMX (tiles.hpp).
//
// A panel's line is a line of B: sixteen lines of two panels (what Op turned them into where they are not multiplied as they are stored)
// meet the same 64 bytes of up to 32 tokens in four products:
//
//              panel q      panel q+1        of a pair
//            ┌────────────┬────────────┐
//   tokens   │ C0  +=     │ C1  +=     │     A4, A5: 16 tokens x 64 bytes
//    0..15   │   A4 x B6  │   A4 x B7  │     B6, B7: 16 lines of a panel
//            ├────────────┼────────────┤
//   16..31   │ C2 += A5B6 │ C3 += A5B7 │
//            └────────────┴────────────┘
#pragma once

#include "bf12.hpp"
#include "fetch.hpp"
#include "packed_results.hpp"
#include "tiles.hpp"

namespace pagoda {
namespace {

constexpr int64_t kTileWords = kTileBytes / 4;  // of a token, and lines of a panel, in a tile
constexpr int64_t kLineTile = kTileWords * 64;  // bytes of a tile of lines
constexpr int64_t kPairWords = 2 * kPanel;      // sums of a token side by side
constexpr int64_t kRing = 4;                    // pairs of tiles that are turned ahead of their products
// Few tokens ask for lines a little ahead of those that are multiplied: beside tile i for those of tile i + 1 from kSkipped on and the first kSkipped
// of tile i + 2, in both panels, a quarter after each product (lines that are turned: of the tile turned_lead() bytes on, they are read earlier):
//
//   17 to 32 tokens   after product 0   4  8 12 │ 0      up to 16   4  5  6  7
//                     after product 1   5  9 13 │ 1                 8  9 10 11
//                     …                tile i+1 │ tile i+2          …
//
// The hardware reads on from there, from a panel ahead it does not. All products of the 0.5B shape on two cores, either order in turn: 32 tokens 35.0 ms
// so and 38.5 in order (the loop in a program of its own); these kernels: one token 37.1 in strides and 35.5 so, eight 36.8 and 36.1.
constexpr int64_t kSkipped = 4;

// Lines that are turned, tiles ahead of their products. 17 to 32 tokens keep a core busy for most of the time that a tile's lines take to come, which
// the other numbers do not gain from (all products of the 1B shape by bf12, two cores: 32 tokens 0.96 to 0.98 of the time; one token 1.0 to 1.04).
constexpr int64_t turned_lead(bool tall) { return tall ? 4608 : 2048; }
constexpr int64_t turned_tiles(bool tall) { return tall ? 2 : 1; }

// Lines of bf12: pairs of bfloat16, four lines out of three.
struct Chunks : Pairs {};

// How so many lines that are multiplied are stored, and the way from there.
template <class Op>
struct Stored {
  static constexpr bool kTurned = Op::kSteps > 1;
  static constexpr int64_t kLines = kTileWords / Op::kSteps;  // of a tile
  static constexpr int64_t bytes(int64_t lines) { return lines / Op::kSteps * 64; }

  const uint8_t* from = nullptr;
  Stored() = default;
  Stored(const PackedMatrix& m, int64_t panel_bytes, int64_t panel, int64_t first) : from(m.data + panel * panel_bytes + bytes(first)) {}

  template <bool kFetch>
  void turn(int64_t lines, uint8_t* to) {
    turn_lines<Op, kFetch>(from, lines / Op::kSteps, to);
    from += bytes(lines);
  }
};

template <>
struct Stored<Chunks> {
  static constexpr bool kTurned = true;
  static constexpr int64_t kLines = kTileWords / kChunkLines * (kChunkBytes / 64);
  static constexpr int64_t bytes(int64_t lines) { return (lines + kChunkLines - 1) / kChunkLines * kChunkBytes; }

  ChunkLines lines;
  Stored() = default;
  Stored(const PackedMatrix& m, int64_t panel_bytes, int64_t panel, int64_t first) : lines(m, panel_bytes, panel, first) {}

  template <bool kFetch>
  __attribute__((always_inline)) void turn(int64_t count, uint8_t* to) {
    lines.open<kFetch>(count, to);
  }
};

// A panel's piece that is turned beside products, a tile beside each, so that vectors work while tiles are multiplied.
template <class Op>
class Opening {
 public:
  // Whole tiles from line `first` of a panel on, to [tiles][2][16][64], those of the pair's other panel between.
  void begin(const PackedMatrix& m, int64_t panel_bytes, int64_t panel, int64_t first, int64_t tiles, uint8_t* to) {
    lines_ = Stored<Op>(m, panel_bytes, panel, first), to_ = to, end_ = to + tiles * 2 * kLineTile;
  }

  __attribute__((always_inline)) void tile() {
    if (to_ == end_) return;
    lines_.template turn<false>(kTileWords, to_);
    to_ += 2 * kLineTile;
  }
  void all() {
    while (to_ != end_) tile();
  }

 private:
  Stored<Op> lines_;
  uint8_t *to_ = nullptr, *end_ = nullptr;
};

struct NothingOpens {
  void tile() {}
};

// A pair of panels (or one, at the end) times a group of tokens, over a piece of the inputs.
struct Pass {
  const uint8_t* tokens;   // first word of the piece
  int64_t token_bytes, tile_bytes;  // between tokens, between the tiles of one
  const uint8_t* panels;
  int64_t panel_bytes, line_bytes;  // between the panels of the pair, between tiles
  const PackedMatrix* matrix;  // where lines are turned on the way: of which panels, from which line on
  int64_t matrix_panel_bytes, panel, apart, line;  // (a panel's bytes are two divisions)
  int64_t tiles;           // whole ones
  const uint8_t *last_tokens, *last_panels;  // one more, filled up with zeros, [32][64] and [2][16][64]; or null
  uint8_t* ring;           // [kRing][2][16][64], where lines are turned on the way
  const uint32_t* from;    // what the sums begin with, rows 64 bytes apart (both panels the same) or 128
  bool begins;
  uint32_t* to;            // [tokens][kPairWords]
  // Few tokens: where the first panel ends, and what comes after the pair, `then_panel` bytes apart.
  const uint8_t *end, *then;
  int64_t then_panel;
  // Many: what comes next, into the second cache: some lines of each of two panels every tile.
  const uint8_t* ahead;
  int64_t ahead_lines, ahead_panel;
};

// A tile of a pair whose lines are asked for; at the pair's end it goes on in what comes after.
struct TileAhead {
  const uint8_t *at, *second, *end;  // in both panels; where the first one ends, or beyond everything

  TileAhead(const Pass& p, int64_t bytes) : at(p.panels + bytes), second(at + p.panel_bytes), end(p.end) { at_end(p); }
  void go_on(const Pass& p, int64_t bytes) { at += bytes, second += bytes, at_end(p); }
  void at_end(const Pass& p) {
    if (at < end) return;
    at = p.then, second = at + p.then_panel, end = reinterpret_cast<const uint8_t*>(UINTPTR_MAX);
  }
};

#define PAGODA_TILE_PRODUCT(c, a, b)                    \
  do {                                                  \
    if constexpr (kIntegers) _tile_dpbsud(c, a, b);     \
    else _tile_dpbf16ps(c, a, b);                       \
  } while (0)

// What is used once: not into the first cache (kPasses).
#define PAGODA_PASSING_TILE(tile, from, bytes)                              \
  do {                                                                      \
    if constexpr (Turn::kPasses) _tile_stream_loadd(tile, from, bytes);     \
    else _tile_loadd(tile, from, bytes);                                    \
  } while (0)

// Lines as they lie in memory, for few tokens, or in pieces for many, maybe turned before. kFollows: fetched between products, not behind them
// (which changes nothing for prompts of 1024 tokens). kPasses: tokens and sums pass by what stays in the first cache, a piece or the ring.
struct AsTheyAre {
  static constexpr bool kTurns = false, kFollows = true, kPasses = false;
  static constexpr int64_t kLines = kTileWords;  // of a tile as they are stored
};
struct InPieces {
  static constexpr bool kTurns = false, kFollows = false, kPasses = true;
  static constexpr int64_t kLines = kTileWords;
};
template <class Op>
struct OnTheWay : Stored<Op> {
  static constexpr bool kTurns = true, kFollows = true, kPasses = true;
  using Stored<Op>::Stored;
};

// kTall: more than sixteen tokens. kBoth: two panels. Turn: an Op that turns a tile of lines into the ring while a tile before is
// multiplied, so that memory, turning and products overlap (int8 and one token: 7 GB/s of weights were read when pieces were turned first).
// opening: what is turned for other products; between() is called after each tile.
template <bool kIntegers, bool kTall, bool kBoth, class Turn, class Opens, class Between>
void run_pass(const Pass& p, Opens& opening, Between between) {
  const int64_t from_bytes = p.begins ? 64 : kPairWords * 4, from_tile = 16 * from_bytes, second = p.begins ? 0 : 64;
  const char* const from = reinterpret_cast<const char*>(p.from);
  Opens opens = opening;  // in registers
  tile_fence();
  PAGODA_PASSING_TILE(0, from, from_bytes);
  if constexpr (kBoth) PAGODA_PASSING_TILE(1, from + second, from_bytes);
  if constexpr (kTall) PAGODA_PASSING_TILE(2, from + from_tile, from_bytes);
  if constexpr (kTall && kBoth) PAGODA_PASSING_TILE(3, from + from_tile + second, from_bytes);
  constexpr bool kOpens = !__is_same(Opens, NothingOpens);
  const uint8_t *a = p.tokens, *b = p.panels, *ahead = p.ahead;
  // Lines of a tile as they are stored, those of the next one that were asked for a tile before, and its bytes.
  constexpr int64_t kLines = Turn::kLines, kBefore = Turn::kTurns ? 0 : kSkipped, kBytes = kLines * 64;
  constexpr bool kInOrder = !kTall && kLines % 4 == 0;
  TileAhead soon(p, Turn::kTurns ? turned_lead(kTall) : kBytes), later(p, 2 * kBytes);
  const auto ask = [&](int64_t quarter) __attribute__((always_inline)) {
    if constexpr (Turn::kFollows)
#pragma GCC unroll 4
      for (int64_t i = 0; i < kLines / 4 + (quarter < kLines % 4); ++i) {
        const int64_t line = kBefore + (kInOrder ? quarter * (kLines / 4) + i : quarter + 4 * i);
        const int64_t byte = (line < kLines ? line : line - kLines) * 64;
        ask_first((line < kLines ? soon.at : later.at) + byte);
        if constexpr (kBoth) ask_first((line < kLines ? soon.second : later.second) + byte);
      }
  };
  const auto go_on = [&] {
    if constexpr (!Turn::kFollows) return;
    soon.go_on(p, kBytes);
    if constexpr (kBefore > 0) later.go_on(p, kBytes);
  };
  const auto step = [&](const uint8_t* a, int64_t a_bytes, const uint8_t* b, int64_t b_bytes) __attribute__((always_inline)) {
    PAGODA_PASSING_TILE(4, a, a_bytes);
    _tile_loadd(6, b, 64);
    PAGODA_TILE_PRODUCT(0, 4, 6);
    ask(0);
    if constexpr (kBoth) {
      _tile_loadd(7, b + b_bytes, 64);
      PAGODA_TILE_PRODUCT(1, 4, 7);
    }
    ask(1);
    if constexpr (kTall) {
      PAGODA_PASSING_TILE(5, a + 16 * a_bytes, a_bytes);
      PAGODA_TILE_PRODUCT(2, 5, 6);
    }
    ask(2);
    if constexpr (kTall && kBoth) PAGODA_TILE_PRODUCT(3, 5, 7);
    ask(3);
    go_on();
    if constexpr (kOpens) {
      tile_fence();  // where a tile was loaded from, and where one will be
      opens.tile();
      tile_fence();
    }
    between();
  };
  const auto fetch = [&]() __attribute__((always_inline)) {
    if constexpr (Turn::kFollows) return;
    for (int64_t line = 0; line < p.ahead_lines; ++line, ahead += 64) {
      __builtin_prefetch(ahead, 0, 2);
      if constexpr (kBoth) __builtin_prefetch(ahead + p.ahead_panel, 0, 2);
    }
  };
  if constexpr (Turn::kTurns) {
    Turn first(*p.matrix, p.matrix_panel_bytes, p.panel, p.line), second(*p.matrix, p.matrix_panel_bytes, p.panel + (kBoth ? p.apart : 0), p.line);
    const auto turn = [&](int64_t i) __attribute__((always_inline)) {
      uint8_t* const to = p.ring + i % kRing * 2 * kLineTile;
      first.template turn<false>(kTileWords, to);
      if constexpr (kBoth) second.template turn<false>(kTileWords, to + kLineTile);
    };
    constexpr int64_t kAhead = turned_tiles(kTall);
    static_assert(kAhead < kRing);
    for (int64_t i = 0; i < kAhead && i < p.tiles; ++i) turn(i);
    for (int64_t i = 0; i < p.tiles; ++i, a += p.tile_bytes) {
      if (i + kAhead < p.tiles) turn(i + kAhead);
      tile_fence();
      step(a, p.token_bytes, p.ring + i % kRing * 2 * kLineTile, kLineTile);
      fetch();
    }
  } else {
    for (int64_t i = 0; i < p.tiles; ++i, a += p.tile_bytes, b += p.line_bytes) {
      step(a, p.token_bytes, b, p.panel_bytes);
      fetch();
    }
  }
  if (p.last_tokens) step(p.last_tokens, kTileBytes, p.last_panels, kLineTile);
  opening = opens;
  _tile_stored(0, p.to, kPairWords * 4);
  if constexpr (kBoth) _tile_stored(1, p.to + kPanel, kPairWords * 4);
  if constexpr (kTall) _tile_stored(2, p.to + 16 * kPairWords, kPairWords * 4);
  if constexpr (kTall && kBoth) _tile_stored(3, p.to + 16 * kPairWords + kPanel, kPairWords * 4);
}

}  // namespace
}  // namespace pagoda
