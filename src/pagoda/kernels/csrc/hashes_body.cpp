// Hashes for one instruction set; see hashes.hpp. A vector's sums run over its elements in order, each plane in a lane of its own.
#include "hashes.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

constexpr int kVectors = 4;  // at once: so that no sum waits for the one before

// Sums of kCount vectors x over 16 planes, to be read as bits `first` and up.
template <int kCount>
void add_bits(const HashArgs& a, const float* x, int64_t first, int32_t* hashes) {
  constexpr int kRegisters = kPlanesAtOnce / kLanes;
  Vec dots[kCount][kRegisters];
  for (int i = 0; i < kCount; ++i)
    for (int r = 0; r < kRegisters; ++r) dots[i][r] = Vec{};
  for (int64_t d = 0; d < a.dim; ++d)
    for (int r = 0; r < kRegisters; ++r) {
      const Vec planes = load(a.planes + d * a.width + first + r * kLanes);
      for (int i = 0; i < kCount; ++i) dots[i][r] = fused(planes, x[i * a.dim + d], dots[i][r]);
    }
  for (int i = 0; i < kCount; ++i) {
    float sums[kPlanesAtOnce];
    for (int r = 0; r < kRegisters; ++r) store(sums + r * kLanes, dots[i][r]);
    for (int b = 0; b < kPlanesAtOnce && first + b < a.bits; ++b) hashes[i] |= int32_t(sums[b] > 0.0f) << (first + b);
  }
}

template <int kCount>
void hash(const HashArgs& a, int64_t i) {
  int32_t hashes[kCount] = {};
  for (int64_t first = 0; first < a.bits; first += kPlanesAtOnce) add_bits<kCount>(a, a.x + i * a.dim, first, hashes);
  for (int n = 0; n < kCount; ++n) a.hashes[i + n] = float(hashes[n]);
}

}  // namespace

namespace PAGODA_ISA {

void run_sign_hashes(const HashArgs& a) {
  int64_t i = 0;
  for (; i + kVectors <= a.count; i += kVectors) hash<kVectors>(a, i);
  for (; i < a.count; ++i) hash<1>(a, i);
}

void run_hash_scores(const HashScoreArgs& a) {
  for (int64_t row = 0; row < a.rows; ++row)
    for (int64_t slot = 0; slot < a.slots; ++slot) {
      const uint32_t hash = uint32_t(a.hashes[row * a.stride + slot]);
      int64_t apart = 0;
      for (int64_t g = 0; g < a.group; ++g) apart += __builtin_popcount(hash ^ uint32_t(a.queries[row * a.group + g]));
      a.scores[row * a.slots + slot] = float(a.group * a.bits - 2 * apart);
    }
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
