// What an eviction does to a sequence's heads, all of them in one call: choose the slots that stay, close the gaps in pages and in
// what is remembered of each slot, and add up what slots received in a step.
//
//   keep [rows][slots]   one byte a slot: whether it stays; a row is one kv-head of one layer
#pragma once

#include <cstdint>
#include <vector>

#include "page_shape.hpp"

namespace pagoda {

struct KeepBestArgs {
  const float* scores = nullptr;  // [rows][slots]
  const int64_t* lens = nullptr;  // [rows] slots held
  const int64_t* budgets = nullptr;  // [rows] slots that stay at most
  int64_t rows = 0, slots = 0;
  int64_t sinks = 0, recent = 0;  // first and newest slots that stay whatever their score
  float least = 0.0f;             // others below it do not
  uint8_t* keep = nullptr;        // [rows][slots], written
};

// Of equal scores the newest slot is the better. A score of -infinity (or no number at all) never stays.
void keep_best(const KeepBestArgs& args);

// Slots of every row that stay move up to 0, 1, 2 … in their order, within the row's pages. rows [count][width]: page ids, of which
// those that `keep` reaches are checked (std::out_of_range names the first bad one).
void close_gaps(char* base, int64_t num_pages, int64_t page_bytes, int64_t page_size, const std::vector<Plane>& planes,
                const int32_t* rows, int64_t width, const uint8_t* keep, int64_t count, int64_t slots);

// The same for a number of each slot, values [count] rows `stride` apart; columns behind those that stay become 0, up to `width`.
void close_rows(float* values, int64_t stride, int64_t width, const uint8_t* keep, int64_t count, int64_t slots);

// targets[s] float [layers * heads][widths[s]] += sums [layers][seqs][heads][slots], as far as both are wide.
void add_sums(const float* sums, int64_t layers, int64_t seqs, int64_t heads, int64_t slots, const int64_t* targets,
              const int64_t* widths);

}  // namespace pagoda
