// Items of wide chunks for machines with AMX: the tiles of attention_body.cpp, whose rows are multiplied sixteen at a time.
#include "attention.hpp"
#include "attention_tile.hpp"
#include "tiles.hpp"

namespace pagoda::amx {

void run_item(const AttentionArgs& args, const Span* spans, const AttentionItem& item, const AttentionItem* soon, bool cold,
              const AttentionScratch& out) {
  static constexpr TileShapes kWhole = [] {
    TileShapes shapes;
    for (int tile = 0; tile < 8; ++tile) shapes.set(tile, kTileRows);
    return shapes;
  }();
  const TileScope tiles(kWhole);
  Tile<Pairs>(args, spans, item, out).run(soon, cold);
}

}  // namespace pagoda::amx
