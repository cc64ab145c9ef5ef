// Items of attention work, for one instruction set. Compiled once per instruction set (CMakeLists.txt); everything but the
// entries lives in an unnamed namespace and uses nothing of the standard library that could be shared between objects compiled
// for different machines.
//
// A tile holds R rows = queries x query heads of the group (of one sequence, or of several that begin with the same pages),
// which read the same K and V. Slots are taken kBlock at a time, with a running maximum (online softmax, arXiv:1805.02867):
//
//   slots in pages ──pack──►  keys   [words of k_dim][kBlock]        once a block, for all rows
//                             values [words of kBlock][v_dim]
//   for six rows at a time:   scores = queries x keys,  probabilities = 2^(scores - maximum),  sums += probabilities x values
//
// Scores are in units of log2, so that e^x is 2^x. Logits, sums and denominators are float32; the products are those of Math:
// float32, or pairs of bfloat16 (then probabilities are rounded to bfloat16 before they meet V).
//
//   attention_tile.hpp    a tile's way over its slots      attention_block.hpp   a block of slots, packed or where it lies
//   attention_tile_rows   its rows, maxima and sums        attention_many.hpp    many rows against a block: chunks, shared prefixes
//   attention_logits.hpp  scale, cap, mask                 attention_decode.hpp  few rows against a block: a decode step
//   attention_results     parts merged, results written    attention_sums.hpp    probability sums
//   attention_tiles.cpp   products of pairs on machines with AMX: attention_tiled.hpp (many rows, attention_tiled_steps.hpp), attention_tiled_parts.hpp (what they
//                         have summed, by rows again), attention_tiled_few.hpp; of bytes: attention_byte_tiles.hpp, attention_byte_many.hpp

#include "attention.hpp"
#include "attention_sums.hpp"
#include "attention_tile.hpp"

namespace pagoda::PAGODA_ISA {

void run_item(const AttentionArgs& args, const Span* spans, const AttentionItem& item, const AttentionItem* soon, bool cold,
              const AttentionScratch& out) {
#if PAGODA_DPBF16
  if (args.pairs(spans[item.span_begin].seq)) return Tile<Pairs>(args, spans, item, out).run(soon, cold);
#endif
  Tile<Floats>(args, spans, item, out).run(soon, cold);
}

void run_merge(const AttentionArgs& args, const Merge& merge, const AttentionScratch& out) { merge_parts(args, merge, out); }

void run_sums(const AttentionArgs& args, const SumItem& item, const AttentionScratch& out) {
#if PAGODA_DPBF16
  if (args.pairs(item.seq)) return sum_probabilities<Pairs>(args, item, out);
#endif
  sum_probabilities<Floats>(args, item, out);
}

}  // namespace pagoda::PAGODA_ISA
