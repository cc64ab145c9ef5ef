// One token by grouped int4 or int5, by vectors with the bits of tiles: a tile uses one row of sixteen then, and codes would have to be
// written down before it is loaded. By tiles one token took 178 us, so 150 ([4864, 896] of groups of 128 on a Xeon, 15 GB/s).
//
// A tile's product sums the even inputs of its 64 bytes in one float, the odd ones in another, each by a fused multiply-add, and adds the sum
// of both to what is there; denormal numbers count as zero in all of it (FlushScope).
#pragma once

#include "grouped_tiles.hpp"
#include "packed_results.hpp"

namespace pagoda {
namespace {

// Codes as floats, less the middle.
template <int kBits>
struct CodeFloats {
  alignas(64) float entry[32];
  constexpr CodeFloats() : entry() {
    for (int i = 0; i < 32; ++i) entry[i] = static_cast<float>(i % (1 << kBits) - static_cast<int>(middle_of(kBits)));
  }
};

template <int kBits>
constexpr CodeFloats<kBits> kCodeFloats{};

// The code in the lowest bits; those above do not matter.
template <int kBits>
Vec code_value(UintVec code) {
  const __m512 low = _mm512_load_ps(kCodeFloats<kBits>.entry);
  if (kBits == 4) return (Vec)_mm512_permutexvar_ps((__m512i)code, low);
  return (Vec)_mm512_permutex2var_ps(low, (__m512i)code, _mm512_load_ps(kCodeFloats<kBits>.entry + 16));
}

class GroupedRow {
 public:
  GroupedRow(const LinearSlice& slice, int64_t first, int64_t last_panel)
      : s(slice), m(slice.matrix), first_panel(first), end_of_slice(last_panel), blocks(m.blocks()), groups(m.groups()),
        lines_of_group(m.group / m.block()), panel_bytes(m.panel_bytes()) {
    const int64_t words = blocks * m.block() / 2;
    x = reinterpret_cast<float*>(scratch.need(words * 8));
    for (int64_t i = 0; i < words; ++i) {
      x[2 * i] = bf16_value(static_cast<uint16_t>(s.x.data[i]));
      x[2 * i + 1] = bf16_value(static_cast<uint16_t>(s.x.data[i] >> 16));
    }
  }

  void run() const {
    const FlushScope flush(true);
    if (m.format == Format::int4) m.zeros ? run_pairs<4, true>() : run_pairs<4, false>();
    else m.zeros ? run_pairs<5, true>() : run_pairs<5, false>();
  }

 private:
  template <int kBits, bool kZeros>
  void run_pairs() const {
    for (int64_t panel = first_panel; panel < end_of_slice; panel += 2) {
      if (panel + 1 < end_of_slice) run_panels<kBits, kZeros, 2>(panel);
      else run_panels<kBits, kZeros, 1>(panel);
    }
  }

  template <int kBits, bool kZeros, int kPanels>
  PAGODA_OWN_REGISTERS void run_panels(int64_t panel) const {
    const int64_t pairs_of_tile = m.group / 2 / steps_of(m.group * 2);
    const float* token = x;
    Vec total[kPanels] = {};
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = group * lines_of_group, lines = smaller(lines_of_group, blocks - first);
      const uint8_t* codes = m.data + panel * panel_bytes + first * 64;
      const CodesAhead ahead(s, m.data + panel * panel_bytes, panel_bytes, 2 * panel_bytes, panel + 2 >= end_of_slice, blocks, first);
      Vec sum[kPanels] = {}, even[kPanels] = {}, odd[kPanels] = {}, zero[kPanels];
      for (int p = 0; p < kPanels; ++p)
        if (kZeros) zero[p] = to_floats(load_bytes(m.zeros + ((panel + p) * groups + group) * kPanel) - static_cast<int32_t>(middle_of(kBits)));
      const auto end_tile = [&]() __attribute__((always_inline)) {
        for (int p = 0; p < kPanels; ++p) sum[p] += even[p] + odd[p], even[p] = odd[p] = Vec{};
      };
      int64_t left = pairs_of_tile;
      for (int64_t i = 0; i < lines; ++i, codes += 64) {
        UintVec line[kPanels];
        for (int p = 0; p < kPanels; ++p) {
          line[p] = load_lanes(codes + p * panel_bytes);
          __builtin_prefetch(ahead.at + p * ahead.apart + i * 64, 0, 2);
        }
#pragma GCC unroll 4
        for (uint32_t n = 0; n < 16 / kBits; ++n, token += 2) {
#pragma GCC unroll 2
          for (int p = 0; p < kPanels; ++p) {
            Vec low = code_value<kBits>(line[p] >> (n * kBits)), high = code_value<kBits>(line[p] >> (n * kBits + 16));
            if (kZeros) low -= zero[p], high -= zero[p];
            even[p] = fused(low, token[0], even[p]), odd[p] = fused(high, token[1], odd[p]);
          }
          if (--left == 0) end_tile(), left = pairs_of_tile;
        }
      }
      if (left < pairs_of_tile) end_tile();
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) {
        const int64_t at = ((panel + p) * groups + group) * kPanel;
        const Vec scale = m.wide_scales ? load(static_cast<const float*>(m.scales) + at) : load(static_cast<const uint16_t*>(m.scales) + at);
        total[p] = fused(sum[p], scale, total[p]);
      }
    }
    alignas(64) float sums[2 * kPanel];
    for (int p = 0; p < kPanels; ++p) store(sums + p * kPanel, total[p]);
    finish_tiles<false>(s, 0, 1, panel, kPanels, reinterpret_cast<const uint32_t*>(sums));
  }

  const LinearSlice& s;
  const PackedMatrix& m;
  const int64_t first_panel, end_of_slice, blocks, groups, lines_of_group, panel_bytes;
  float* x = nullptr;
};

}  // namespace
}  // namespace pagoda
