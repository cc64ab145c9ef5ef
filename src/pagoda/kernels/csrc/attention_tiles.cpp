// Items for machines with AMX: the tiles of attention_body.cpp, with products of pairs of bfloat16 in registers of sixteen rows. Those are
// summed in another order than vectors' (tiles.hpp), so who multiplies must not depend on an item's rows: it is the group of query heads
// and the sequence's chunk that decide. Products of bytes are exact, whoever multiplies.
#include "attention.hpp"
#include "tiles.hpp"
#include "attention_tile.hpp"

namespace pagoda::amx {

namespace {

// Query heads of a kv-head from which on decode steps are multiplied so. 8192 slots in memory, one core, us, vectors and tiles: 1 head 190,
// 270; 2 heads 210, 300; 4 heads 270, 310; 7 heads 390, 290; 16 heads 800, 370; 1024 slots in the second cache: 4 heads 30, 20. And 128
// rows of four heads that share their slots take a quarter of the time.
constexpr int64_t kTiledGroup = 4;

// Products of bytes have the same bits either way. Up to eight rows are as fast by vectors: 4096 slots in memory, 24 layers, two cores, int8
// 1.60 to 1.62 ms by vectors and 1.66 to 1.73 by tiles, int4 1.51 to 1.65 and 1.63 to 1.64.
bool in_tiles(const AttentionArgs& a, const Span* spans, const AttentionItem& item) {
  const int64_t seq = spans[item.span_begin].seq;
  if (!TileRows<Pairs>::in_bytes(a, seq)) return a.wide(seq) || a.group() >= kTiledGroup;
  int64_t queries = 0;
  for (int32_t s = item.span_begin; s < item.span_end; ++s) queries += spans[s].q_end - spans[s].q_begin;
  return queries * a.group() > kFewRows;
}

}  // namespace

void run_item(const AttentionArgs& args, const Span* spans, const AttentionItem& item, const AttentionItem* soon, bool cold,
              const AttentionScratch& out) {
  if (!in_tiles(args, spans, item)) return avx512bf16::run_item(args, spans, item, soon, cold, out);
  static constexpr TileShapes kWhole = [] {
    TileShapes shapes;
    for (int tile = 0; tile < 8; ++tile) shapes.set(tile, kTileRows);
    return shapes;
  }();
  const TileScope tiles(kWhole);
  Tile<Pairs>(args, spans, item, out).run(soon, cold);
}

}  // namespace pagoda::amx
