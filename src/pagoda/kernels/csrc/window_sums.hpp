// What slots receive from the newest queries, over the slots that are left: for windows that reach back beyond an act, where what was
// received on the way went to slots that are gone.
#pragma once

#include <cstdint>
#include <string>

#include "dtype.hpp"
#include "isa.hpp"
#include "slots.hpp"

namespace pagoda {

// Of one row, a kv-head of a layer.
struct WindowHead {
  const char* pages = nullptr;
  const PageShape* shape = nullptr;
  const int32_t* page_ids = nullptr;  // of its slots
  float *rows = nullptr, *keys = nullptr;  // its own: [kWindowSlots][dim], and [dim][room]
  const int32_t* positions = nullptr;  // [room], those behind the last slot later than any query's
  int64_t dim = 0, slots = 0, room = 0;  // room: slots, up to a multiple of kWindowSlots
  const char* queries = nullptr;  // the t-th there of head g at t * query_stride bytes + g * dim elements of dtype
  const char* next_queries = nullptr;  // of the row that comes next: fetched meanwhile, nobody read them since they were noted
  Dtype dtype = Dtype::f32;
  int64_t query_stride = 0, window = 0, group = 0;
  int64_t places = 0, first_place = 0;  // query t is the (first_place + t) % places-th there
  int64_t first_position = 0;  // of query 0; the others follow
  float scale = 1.0f, soft_cap = 0.0f;
  float *wide = nullptr, *scores = nullptr;  // its own: queries as floats [kWindowQueries][dim], and [kWindowQueries][room]
  float *received = nullptr, *wanted = nullptr, *largest = nullptr;  // [room], zeros before
  float* given = nullptr;  // its own: [room], zeros before
};

constexpr int64_t kWindowSlots = 16, kWindowQueries = 8;

struct WindowArgs {
  ReadArgs read;  // pages and rows; the rest is its own
  const int64_t* lens = nullptr;  // [rows]
  const int64_t* positions = nullptr;  // [rows][slots]
  int64_t slots = 0, heads = 0;  // heads of a layer
  const char* queries = nullptr;  // [layers][places][heads * group][k_dim] of dtype, the oldest at first_place, the others behind, around
  Dtype dtype = Dtype::f32;
  int64_t window = 0, group = 0, num_seen = 0;
  int64_t places = 0, first_place = 0;
  float scale = 1.0f, soft_cap = 0.0f;
  // Where only some query heads are asked, [layers][num_voters] of the heads * group of a layer: rows of results are theirs, in this order.
  const int64_t* voters = nullptr;
  int64_t num_voters = 0;
  float *received = nullptr, *wanted = nullptr, *largest = nullptr;  // [rows][slots], written
};

// A query sees the slots whose positions are not later than its own: softmax of their products, summed over the window and the group;
// how many of these queries gave a slot at least their mean over what they see (but for rounding); and the most that one token's queries, the
// group's together, gave it.
void window_sums(const WindowArgs& args, int num_threads, const std::string& isa);

PAGODA_DECLARE_BODIES(void, add_window, (const WindowHead&))

}  // namespace pagoda
