#include "lay_out.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "bf12_encode.hpp"
#include "packed.hpp"
#include "parallel.hpp"

namespace pagoda {
namespace {

constexpr int64_t kRows = 16;    // of a panel
constexpr int64_t kPiece = 2 << 20;  // bytes of panels that one thread writes at a time
constexpr int64_t kBlocks = 64;  // at a time: 4 KiB of a panel, which stay in the first cache while its rows are strewn

uint32_t turned(uint32_t block, Stored stored) {
  if (stored == Stored::int8 || stored == Stored::fp8) {
    if (stored == Stored::int8) block ^= 0x80808080u;
    return (block & 0xff0000ffu) | (block & 0x0000ff00u) << 8 | (block & 0x00ff0000u) >> 8;
  }
  if (stored == Stored::int4) {
    uint32_t even = block & 0x0f0f0f0fu, odd = block >> 4 & 0x0f0f0f0fu;
    even = (even | even >> 4) & 0x00ff00ffu, odd = (odd | odd >> 4) & 0x00ff00ffu;
    even = (even | even >> 8) & 0xffffu, odd = (odd | odd >> 8) & 0xffffu;
    return even | odd << 16;
  }
  if (stored == Stored::ternary) {
    uint32_t even = block & 0x33333333u, odd = block >> 2 & 0x33333333u;
    even = (even | even >> 2) & 0x0f0f0f0fu, odd = (odd | odd >> 2) & 0x0f0f0f0fu;
    even = (even | even >> 4) & 0x00ff00ffu, odd = (odd | odd >> 4) & 0x00ff00ffu;
    even = (even | even >> 8) & 0xffffu, odd = (odd | odd >> 8) & 0xffffu;
    return even | odd << 16;
  }
  return block;
}

// The block that a row's end cuts short: fields that are not there are 0.
uint32_t last_block(const uint8_t* bytes, int64_t count, Stored stored) {
  uint32_t block = 0;
  std::memcpy(&block, bytes, count);
  if (stored == Stored::int8) block |= 0x80808080u << 8 * count;  // turned: 0
  return turned(block, stored);
}

// Whether a block holds something that is no number, or infinite: all bits of an exponent (of e4m3 all but the sign).
bool is_bad(uint32_t block, Stored stored) {
  const auto halves = [&](uint32_t exponent) { return ((block & exponent) == exponent) | ((block >> 16 & exponent) == exponent); };
  switch (stored) {
    case Stored::f32: return (block & 0x7f800000u) == 0x7f800000u;
    case Stored::bf16: return halves(0x7f80u);
    case Stored::f16: return halves(0x7c00u);
    case Stored::fp8: return (((~block & 0x7f7f7f7fu) + 0x7f7f7f7fu) & 0x80808080u) != 0x80808080u;
    default: return false;
  }
}

template <Stored stored>
bool strew(const uint8_t* row, int64_t count, uint32_t* out) {
  uint32_t bad = 0;
  for (int64_t b = 0; b < count; ++b) {
    uint32_t block;
    std::memcpy(&block, row + 4 * b, 4);
    bad |= is_bad(block, stored);
    out[b * kRows] = turned(block, stored);
  }
  return bad == 0;
}

bool finite_end(const uint8_t* bytes, int64_t count, Stored stored) {
  uint32_t block = 0;
  std::memcpy(&block, bytes, count);
  return !is_bad(block, stored);
}

template <Stored stored>
bool panel(const LayOutArgs& a, int64_t first, uint32_t* out) {
  const int64_t whole = a.row_bytes / 4, rest = a.row_bytes % 4, here = std::min(kRows, a.num_rows - first);
  if (here < kRows) std::memset(out, 0, (whole + (rest > 0)) * kRows * 4);
  bool finite = true;
  for (int64_t b = 0; b < whole; b += kBlocks)
    for (int64_t r = 0; r < here; ++r)
      finite &= strew<stored>(a.rows + (first + r) * a.row_bytes + 4 * b, std::min(kBlocks, whole - b), out + b * kRows + r);
  for (int64_t r = 0; rest && r < here; ++r) {
    const uint8_t* end = a.rows + (first + r) * a.row_bytes + 4 * whole;
    out[whole * kRows + r] = last_block(end, rest, stored);
    finite &= finite_end(end, rest, stored);
  }
  return finite;
}

template <Stored stored>
bool all_panels(const LayOutArgs& a) {
  const int64_t blocks = (a.row_bytes + 3) / 4, panel_bytes = std::max<int64_t>(1, blocks * kRows * 4);
  const int64_t step = std::max<int64_t>(1, kPiece / panel_bytes) * kRows;
  uint32_t* out = reinterpret_cast<uint32_t*>(a.panels);
  std::atomic<bool> finite{true};
  parallel_for((a.num_rows + step - 1) / step, a.num_threads, [&](int64_t item) {
    bool fine = true;
    for (int64_t first = item * step; first < std::min(a.num_rows, (item + 1) * step); first += kRows)
      fine &= panel<stored>(a, first, out + first * blocks);
    if (!fine) finite = false;
  });
  return finite;
}

}  // namespace

std::vector<uint32_t> encode_rows(const EncodeArgs& a, bool& finite, const std::string& isa) {
  const auto encode = PAGODA_BODY(isa, encode_panel);
  const int64_t blocks = (a.row_bytes + 3) / 4, panels = (a.num_rows + kRows - 1) / kRows, bytes = (blocks + 3) / 4 * kChunkBytes;
  const int64_t step = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, bytes)), items = (panels + step - 1) / step;
  const LayOutArgs rows{a.rows, a.num_rows, a.row_bytes, nullptr, Stored::bf16, 1};
  std::vector<std::vector<uint32_t>> found(items);
  std::atomic<bool> fine{true};
  parallel_for(items, a.num_threads, [&](int64_t item) {
    std::vector<uint32_t> lines(blocks * kRows);
    for (int64_t p = item * step; p < std::min(panels, (item + 1) * step); ++p) {
      if (!panel<Stored::bf16>(rows, p * kRows, lines.data())) fine = false;
      const size_t before = found[item].size();
      a.windows[p] = encode(reinterpret_cast<const uint16_t*>(lines.data()), a.row_bytes / 2, a.panels + p * bytes, found[item]);
      a.counts[p] = static_cast<int64_t>(found[item].size() - before);
    }
  });
  finite = fine;
  std::vector<uint32_t> all;
  for (const auto& some : found) all.insert(all.end(), some.begin(), some.end());
  return all;
}

bool lay_out(const LayOutArgs& a) {
  switch (a.stored) {
    case Stored::f32: return all_panels<Stored::f32>(a);
    case Stored::bf16: return all_panels<Stored::bf16>(a);
    case Stored::int8: return all_panels<Stored::int8>(a);
    case Stored::int5: return all_panels<Stored::int5>(a);
    case Stored::ternary: return all_panels<Stored::ternary>(a);
    case Stored::f16: return all_panels<Stored::f16>(a);
    case Stored::fp8: return all_panels<Stored::fp8>(a);
    default: return all_panels<Stored::int4>(a);
  }
}

}  // namespace pagoda
