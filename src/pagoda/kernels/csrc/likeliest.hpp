// The likeliest tokens of a row of logits without ranking the vocabulary. Logits are read once from memory: the largest of every
// kGroup of them is noted, and of `width` groups' largest the smallest is a bound that `width` logits reach. Only groups that reach it
// are looked at again, while the row is still in the second cache.
#pragma once

#include <cstdint>
#include <string>

#include "isa.hpp"

namespace pagoda {

constexpr int64_t kGroup = 64;

// values and ids [rows][width]: the largest of `count` logits, falling, of equals the one with the lower id first; width <= count.
// A row that holds a NaN has one as its first value.
void likeliest(const float* logits, int64_t rows, int64_t count, int64_t width, float* values, int64_t* ids, int num_threads,
               const std::string& isa);

// The largest of each group of a row, but for what is left of it at the end (count % (kGroup * lanes)); returns lanes. Group g of a
// block of `lanes` groups is every lanes-th logit from the block's g-th on. *nan: whether any of these is not a number.
PAGODA_DECLARE_BODIES(int64_t, largest_of_groups, (const float* x, int64_t count, float* largest, bool* nan))

}  // namespace pagoda
