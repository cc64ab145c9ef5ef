// Vectors as a few atoms of a dictionary, found by matching pursuit, and how much of each (kv/policies/csr.py). A search: what torch finds
// differs where two atoms match alike but for rounding.
#pragma once

#include <cmath>
#include <vector>

#include "attention_pack.hpp"
#include "page_codes.hpp"

namespace pagoda {
namespace {

constexpr int64_t kAtoms = 256;
constexpr double kRidge = 1e-3;  // an atom may come twice

inline float product(const float* a, const float* b, int64_t dim) {
  Vec sum{};
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) sum = fused(load(a + d), load(b + d), sum);
  float rest = 0.0f;
  for (; d < dim; ++d) rest += a[d] * b[d];
  return total_of(sum) + rest;
}

// Of a register of vectors, a lane each, the atom [256][dim] that matches best and how well; `turned` [dim][kLanes].
struct Match {
  Vec weight{}, size = splat(-1.0f);
  IntVec atom{};

  Match(const float* table, const float* turned, int64_t dim) {
    constexpr int kMany = 8;  // sums that hide each other's latency
    IntVec here{};
    for (int64_t a = 0; a < kAtoms; a += kMany) {
      const float* const atoms = table + a * dim;
      Vec sums[kMany] = {};
      for (int64_t d = 0; d < dim; ++d) {
        const Vec x = load(turned + d * kLanes);
#pragma GCC unroll 8
        for (int j = 0; j < kMany; ++j) sums[j] = fused(x, splat(atoms[j * dim + d]), sums[j]);
      }
#pragma GCC unroll 8
      for (int j = 0; j < kMany; ++j, here += 1) {
        const Vec big = (Vec)((IntVec)sums[j] & 0x7fffffff);
        const IntVec better = big > size;
        size = select(better, big, size), weight = select(better, sums[j], weight), atom = better ? here : atom;
      }
    }
  }
};

// Least squares: how much of each of `num` chosen atoms makes x, by Cholesky's factors of their products. What it works with is kept.
struct Fit {
  std::vector<const float*> chosen;
  std::vector<double> factor, weight;

  void solve(const float* x, int64_t num, int64_t dim) {
    factor.resize(num * num), weight.resize(num);
    for (int64_t i = 0; i < num; ++i) {
      double* const row = factor.data() + i * num;
      for (int64_t j = 0; j <= i; ++j) {
        const double* const other = factor.data() + j * num;
        double sum = product(chosen[i], chosen[j], dim) + (i == j ? kRidge : 0.0);
        for (int64_t n = 0; n < j; ++n) sum -= row[n] * other[n];
        row[j] = i == j ? std::sqrt(sum) : sum / other[j];
      }
      double sum = product(chosen[i], x, dim);
      for (int64_t n = 0; n < i; ++n) sum -= row[n] * weight[n];
      weight[i] = sum / row[i];
    }
    for (int64_t i = num; i-- > 0;) {
      for (int64_t n = i + 1; n < num; ++n) weight[i] -= factor[n * num + i] * weight[n];
      weight[i] /= factor[i * num + i];
    }
  }
};

template <typename In>
void atom_codes(const RawPage& r, const In* rows) {
  const int64_t dim = r.side->dim, num = r.side->at[3];
  const float* const table = r.table();
  static thread_local Fit fit;
  static thread_local std::vector<float> numbers;
  numbers.resize(3 * kLanes * dim);
  float *const whole = numbers.data(), *const rest = whole + kLanes * dim, *const turned = rest + kLanes * dim;
  fit.chosen.resize(kLanes * num);
  for (int64_t first = 0; first < r.page_size; first += kLanes) {
    const int64_t many = r.page_size - first < kLanes ? r.page_size - first : kLanes;
    for (int64_t i = 0; i < kLanes * dim; ++i) whole[i] = rest[i] = i < many * dim ? widen(rows[first * dim + i]) : 0.0f;
    const char* lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = reinterpret_cast<const char*>(rest + i * dim);
    for (int64_t n = 0; n < num; ++n) {
      pack_keys(lanes, dim, turned, kLanes);
      const Match found(table, turned, dim);
      for (int64_t i = 0; i < many; ++i) {
        const float *const atom = table + found.atom[i] * dim, weight = found.weight[i];
        for (int64_t d = 0; d < dim; ++d) rest[i * dim + d] -= weight * atom[d];
        r.page[r.side->at[0] + (first + i) * num + n] = uint8_t(found.atom[i]);
      }
    }
    for (int64_t i = 0; i < many; ++i) {
      const uint8_t* const index = r.page + r.side->at[0] + (first + i) * num;
      for (int64_t n = 0; n < num; ++n) fit.chosen[n] = table + index[n] * dim;
      fit.solve(whole + i * dim, num, dim);
      float most = 0.0f;
      for (int64_t n = 0; n < num; ++n) {
        const float size = std::fabs(float(fit.weight[n]));
        most = size > most || size != size ? size : most;  // what is no number stays none
      }
      uint16_t half;
      narrow(most / 127.0f, &half);
      const float unit = widen(half), step = unit > 1e-30f ? unit : 1e-30f;
      memcpy(r.page + r.side->at[2] + 2 * (first + i), &half, 2);
      for (int64_t n = 0; n < num; ++n) {
        const float code = std::nearbyint(float(fit.weight[n]) / step);
        r.page[r.side->at[1] + (first + i) * num + n] = uint8_t(int8_t(code > 127.0f ? 127.0f : code >= -127.0f ? code : code < -127.0f ? -127.0f : 0.0f));
      }
    }
  }
}

}  // namespace
}  // namespace pagoda
