#include "hashes.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

namespace pagoda {

namespace {

// Planes [dim][bits], padded so that registers of any width read whole.
struct Padded {
  Padded(const float* planes, int64_t dim, int64_t bits) : width((bits + kPlanesAtOnce - 1) / kPlanesAtOnce * kPlanesAtOnce) {
    if (bits < 1 || bits > kMostBits)
      throw std::invalid_argument(std::to_string(bits) + " bits; a hash has from 1 to " + std::to_string(kMostBits));
    columns.resize(dim * width);
    for (int64_t d = 0; d < dim; ++d) std::copy_n(planes + d * bits, bits, columns.begin() + d * width);
  }

  int64_t width;
  std::vector<float> columns;
};

}  // namespace

void hash_slots(const ReadArgs& read, const float* planes, int64_t bits, float* hashes, int64_t stride, int64_t room,
                const std::string& isa) {
  const Padded padded(planes, read.shape.k_dim, bits);
  const auto body = PAGODA_BODY(isa, run_sign_hashes);
  std::vector<float> keys(read.slots * read.shape.k_dim);
  for (int64_t row = 0; row < read.count; ++row) {
    const int64_t first = read.first[row];
    if (first + read.slots > room)
      throw std::out_of_range("slot " + std::to_string(first + read.slots - 1) + " of " + std::to_string(room) + " hashes");
    ReadArgs one = read;
    one.rows = read.rows + row * read.width, one.first = read.first + row, one.count = 1;
    one.k = keys.data(), one.v = nullptr;
    read_slots(one);
    body({keys.data(), read.slots, read.shape.k_dim, padded.columns.data(), bits, padded.width, hashes + row * stride + first});
  }
}

void hash_scores(HashScoreArgs args, const float* x, int64_t dim, const float* planes, const std::string& isa) {
  const Padded padded(planes, dim, args.bits);
  std::vector<float> queries(args.rows * args.group);
  PAGODA_BODY(isa, run_sign_hashes)({x, int64_t(queries.size()), dim, padded.columns.data(), args.bits, padded.width, queries.data()});
  args.queries = queries.data();
  PAGODA_BODY(isa, run_hash_scores)(args);
}

}  // namespace pagoda
