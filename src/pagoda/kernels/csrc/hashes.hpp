// Which side of some planes vectors lie on, as whole numbers of at most kMostBits bits, and how alike two of them are.
#pragma once

#include <cstdint>

#include "isa.hpp"
#include "slots.hpp"

namespace pagoda {

constexpr int64_t kMostBits = 24;  // whole numbers up to there are exact as float
constexpr int64_t kPlanesAtOnce = 16;

struct HashArgs {
  const float* x = nullptr;  // [count][dim]
  int64_t count = 0, dim = 0;
  const float* planes = nullptr;  // [dim][width], zeros behind the first `bits`; width a multiple of kPlanesAtOnce
  int64_t bits = 0, width = 0;
  float* hashes = nullptr;  // [count], written
};

struct HashScoreArgs {
  const float* hashes = nullptr;  // [rows][slots], rows `stride` apart
  int64_t stride = 0, rows = 0, slots = 0;
  const float* queries = nullptr;  // [rows][group]
  int64_t group = 0, bits = 0;
  float* scores = nullptr;  // [rows][slots], written
};

// hashes[slot] of each row, rows `stride` apart, for the slots that are read: bit b is set where key . planes[., b] > 0; planes
// [dim][bits]. std::out_of_range for slots behind the first `room` of a row.
void hash_slots(const ReadArgs& read, const float* planes, int64_t bits, float* hashes, int64_t stride, int64_t room,
                const std::string& isa);

// scores = sum over the row's queries x [rows][group][dim] of bits of their hashes that agree less those that do not; `args.queries` is
// its own.
void hash_scores(HashScoreArgs args, const float* x, int64_t dim, const float* planes, const std::string& isa);

PAGODA_DECLARE_BODIES(void, run_sign_hashes, (const HashArgs&))
PAGODA_DECLARE_BODIES(void, run_hash_scores, (const HashScoreArgs&))

}  // namespace pagoda
