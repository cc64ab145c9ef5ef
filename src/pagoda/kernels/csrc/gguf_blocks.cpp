#include "gguf_blocks.hpp"

#include <algorithm>
#include <stdexcept>

#include "parallel.hpp"
#include "small_floats.hpp"

namespace pagoda {
namespace {

constexpr int64_t kPiece = 1 << 15;  // weights that a thread takes at a time

float half_at(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, 2);
  return half_value(half);
}

// 16 bytes: all low halves, then all high ones.
void nibbles(const uint8_t* p, uint8_t* q) {
  for (int i = 0; i < 16; ++i) q[i] = p[i] & 15, q[16 + i] = p[i] >> 4;
}

// Weight i has its fifth bit at bit i of four bytes.
void add_fifths(const uint8_t* p, uint8_t* q) {
  for (int i = 0; i < 32; ++i) q[i] |= (p[i / 8] >> i % 8 & 1) << 4;
}

void shifted(const uint8_t* q, int middle, float d, float* out) {
  for (int i = 0; i < 32; ++i) out[i] = d * float(int(q[i]) - middle);
}

void raised(const uint8_t* q, float d, float m, float* out) {
  for (int i = 0; i < 32; ++i) out[i] = d * float(q[i]) + m;
}

// Scales and minima of the eight parts of Q4_K and Q5_K: six bits each, of the last four in two places.
void parts_of(const uint8_t* p, float* scale, float* least) {
  const float d = half_at(p), dmin = half_at(p + 2);
  const uint8_t *low = p + 4, *high = p + 8, *last = p + 12;
  for (int i = 0; i < 4; ++i) {
    scale[i] = d * float(low[i] & 63), least[i] = dmin * float(high[i] & 63);
    scale[4 + i] = d * float((last[i] & 15) | (low[i] >> 6) << 4);
    least[4 + i] = dmin * float((last[i] >> 4) | (high[i] >> 6) << 4);
  }
}

template <BlockKind kind>
struct Opener;

template <>
struct Opener<BlockKind::q8_0> {
  static constexpr int kBytes = 34, kWeights = 32;
  static void open(const uint8_t* p, float* out) {
    const float d = half_at(p);
    const int8_t* q = reinterpret_cast<const int8_t*>(p + 2);
    for (int i = 0; i < 32; ++i) out[i] = d * float(q[i]);
  }
};

// Scale, minimum if there is one, fifth bits if there are, nibbles.
template <bool kMinimum, bool kFifths>
struct OneScale {
  static constexpr int kFirst = kMinimum ? 4 : 2, kNibbles = kFirst + (kFifths ? 4 : 0);
  static constexpr int kBytes = kNibbles + 16, kWeights = 32;
  static void open(const uint8_t* p, float* out) {
    uint8_t q[32];
    nibbles(p + kNibbles, q);
    if (kFifths) add_fifths(p + kFirst, q);
    if (kMinimum) raised(q, half_at(p), half_at(p + 2), out);
    else shifted(q, kFifths ? 16 : 8, half_at(p), out);
  }
};

template <>
struct Opener<BlockKind::q4_0> : OneScale<false, false> {};
template <>
struct Opener<BlockKind::q4_1> : OneScale<true, false> {};
template <>
struct Opener<BlockKind::q5_0> : OneScale<false, true> {};
template <>
struct Opener<BlockKind::q5_1> : OneScale<true, true> {};

// 32 bytes hold parts 2n (low halves) and 2n + 1 (high ones); the fifth bit of weight i of part n is bit n of byte i.
template <int kFifths>
void open_k(const uint8_t* p, float* out) {
  float scale[8], least[8];
  parts_of(p, scale, least);
  const uint8_t *fifths = p + 16, *q = p + 16 + kFifths;
  for (int n = 0; n < 8; ++n)
    for (int i = 0; i < 32; ++i) {
      int code = n % 2 ? q[n / 2 * 32 + i] >> 4 : q[n / 2 * 32 + i] & 15;
      if (kFifths) code |= (fifths[i] >> n & 1) << 4;
      out[32 * n + i] = scale[n] * float(code) - least[n];
    }
}

template <>
struct Opener<BlockKind::q4_k> {
  static constexpr int kBytes = 144, kWeights = 256;
  static void open(const uint8_t* p, float* out) { open_k<0>(p, out); }
};

template <>
struct Opener<BlockKind::q5_k> {
  static constexpr int kBytes = 176, kWeights = 256;
  static void open(const uint8_t* p, float* out) { open_k<32>(p, out); }
};

// Each half of 128 weights is four runs of 32: low bits from bytes 0-31 and 32-63, first their low halves.
template <>
struct Opener<BlockKind::q6_k> {
  static constexpr int kBytes = 210, kWeights = 256;
  static void open(const uint8_t* p, float* out) {
    const float d = half_at(p + 208);
    const int8_t* scales = reinterpret_cast<const int8_t*>(p + 192);
    for (int run = 0; run < 8; ++run) {
      const uint8_t *low = p + run / 4 * 64 + run % 2 * 32, *high = p + 128 + run / 4 * 32;
      const int down = run % 4 / 2 * 4, up = run % 4 * 2;
      for (int half = 0; half < 2; ++half) {
        const float scale = d * float(scales[2 * run + half]);
        for (int i = 16 * half; i < 16 * half + 16; ++i)
          out[32 * run + i] = scale * float(((low[i] >> down & 15) | (high[i] >> up & 3) << 4) - 32);
      }
    }
  }
};

// `open(b)` of every block, some thousands of weights to a thread at a time.
template <class Open>
void for_blocks(int64_t num_blocks, int weights, int num_threads, const Open& open) {
  const int64_t step = kPiece / weights;
  parallel_for((num_blocks + step - 1) / step, num_threads, [&](int64_t item) {
    for (int64_t b = item * step; b < std::min(num_blocks, (item + 1) * step); ++b) open(b);
  });
}

template <BlockKind kind>
void open_all(const OpenArgs& a) {
  constexpr int kBytes = Opener<kind>::kBytes, kWeights = Opener<kind>::kWeights;
  for_blocks(a.num_blocks, kWeights, a.num_threads, [&](int64_t b) {
    if (!a.as_bf16) return Opener<kind>::open(a.raw + b * kBytes, static_cast<float*>(a.out) + b * kWeights);
    float open[kWeights];
    Opener<kind>::open(a.raw + b * kBytes, open);
    uint16_t* out = static_cast<uint16_t*>(a.out) + b * kWeights;
    for (int i = 0; i < kWeights; ++i) out[i] = bf16_bits(open[i]);
  });
}

}  // namespace

void open_blocks(const OpenArgs& a) {
  switch (a.kind) {
    case BlockKind::q8_0: return open_all<BlockKind::q8_0>(a);
    case BlockKind::q4_0: return open_all<BlockKind::q4_0>(a);
    case BlockKind::q4_1: return open_all<BlockKind::q4_1>(a);
    case BlockKind::q5_0: return open_all<BlockKind::q5_0>(a);
    case BlockKind::q5_1: return open_all<BlockKind::q5_1>(a);
    case BlockKind::q4_k: return open_all<BlockKind::q4_k>(a);
    case BlockKind::q5_k: return open_all<BlockKind::q5_k>(a);
    case BlockKind::q6_k: return open_all<BlockKind::q6_k>(a);
  }
  throw std::invalid_argument("no such kind of block");
}

void split_q4_0(const uint8_t* raw, int64_t num_blocks, uint8_t* codes, float* scales, int num_threads) {
  constexpr int kBytes = Opener<BlockKind::q4_0>::kBytes;
  for_blocks(num_blocks, 32, num_threads, [&](int64_t b) {
    const uint8_t* q = raw + kBytes * b + 2;
    scales[b] = half_at(raw + kBytes * b);
    for (int i = 0; i < 8; ++i) {
      codes[16 * b + i] = (q[2 * i] & 15) | (q[2 * i + 1] & 15) << 4;
      codes[16 * b + 8 + i] = q[2 * i] >> 4 | (q[2 * i + 1] & 0xf0);
    }
  });
}

}  // namespace pagoda
