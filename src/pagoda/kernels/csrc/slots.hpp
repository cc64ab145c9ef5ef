// What an eviction does to a sequence's heads, all of them in one call: choose the slots that stay, close the gaps in pages and in
// what is remembered of each slot; read slots as numbers; and add up what slots received in a step.
//
//   keep [rows][slots]   one byte a slot: whether it stays; a row is one kv-head of one layer
#pragma once

#include <cstdint>
#include <vector>

#include "page_shape.hpp"

namespace pagoda {

struct KeepBestArgs {
  const float* scores = nullptr;  // [rows][slots], rows `stride` apart; null: all are equal
  int64_t stride = 0;
  const int64_t* lens = nullptr;  // [rows] slots held
  const int64_t* budgets = nullptr;  // [rows] slots that stay at most
  int64_t rows = 0, slots = 0;
  int64_t sinks = 0, recent = 0;  // first and newest slots that stay whatever their score
  float least = 0.0f;             // others below it do not
  int64_t pool = 1;               // odd: a score is the mean over that many neighbours; what is beyond the ends counts 0
  uint8_t* keep = nullptr;        // [rows][slots], written
};

// Of equal scores the newest slot is the better. A score of -infinity (or no number at all) never stays.
void keep_best(const KeepBestArgs& args);

// Mean of each score and its neighbours, `kernel` in all; what is beyond the ends counts 0. In `out`.
const float* pool_mean(const float* scores, int64_t slots, int64_t kernel, std::vector<float>& out);

// Slots of every row that stay move up to 0, 1, 2 … in their order, within the row's pages. rows [count][width]: page ids, of which
// those that `keep` reaches are checked (std::out_of_range names the first bad one). Threads take whole rows.
void close_gaps(char* base, int64_t num_pages, int64_t page_bytes, int64_t page_size, const std::vector<Plane>& planes,
                const int32_t* rows, int64_t width, const uint8_t* keep, int64_t count, int64_t slots, int num_threads);

// Bytes of a row that `close_rows` changes.
struct SlotRows {
  float* values = nullptr;  // [rows][width]
  int64_t width = 0;
};

struct EvictArgs {
  char* pages = nullptr;
  int64_t num_pages = 0;
  PageShape shape;
  const int32_t* rows = nullptr;  // [choice.rows][width]
  int64_t width = 0;
  KeepBestArgs choice;            // `keep` is its own
  std::vector<SlotRows> values;   // remembered of each slot
  int32_t* lens = nullptr;        // [choice.rows], written: slots that stayed
};

// close_gaps and close_rows; of `choice` only its rows and slots count.
void keep_only(const EvictArgs& args, const uint8_t* keep, int num_threads);

// keep_best, and what it says.
void evict(EvictArgs& args, int num_threads);

// The same for a number of each slot, values [count] rows `stride` apart; columns behind those that stay become 0, up to `width`.
void close_rows(float* values, int64_t stride, int64_t width, const uint8_t* keep, int64_t count, int64_t slots);

struct ReadArgs {
  const char* pages = nullptr;
  int64_t num_pages = 0;
  PageShape shape;
  const int32_t* rows = nullptr;   // [count][width] page ids
  int64_t count = 0, width = 0;
  const int64_t* first = nullptr;  // [count]
  int64_t slots = 0;               // of every row, from first[row] on
  float *k = nullptr, *v = nullptr;  // [count][slots][dim], either may be null
};

// std::out_of_range for slots behind a row, or a page that is not there.
void check_slots(const ReadArgs& args);

// Numbers of slots. Pages that are reached are checked as in close_gaps.
void read_slots(const ReadArgs& args);

// k and v [count][dim] instead: the sum of each row's slots times weights [count][slots].
void weigh_slots(const ReadArgs& args, const float* weights);

// targets[s] float [layers * heads][widths[s]] += sums [layers][seqs][heads][slots], as far as both are wide.
void add_sums(const float* sums, int64_t layers, int64_t seqs, int64_t heads, int64_t slots, const int64_t* targets,
              const int64_t* widths);

}  // namespace pagoda
