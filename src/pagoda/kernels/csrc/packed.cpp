#include "packed.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "parallel_shares.hpp"
#include "rows.hpp"

namespace pagoda {

namespace {

constexpr int64_t kParallelBytes = 256 << 10;  // weights under which waking a thread costs more than it brings
constexpr int64_t kItemTokens = 264;           // tokens of one item, where there are many
constexpr int64_t kItemPanels = 8;             // panels of one item then
constexpr int64_t kSliceBytes = 4 << 20;       // weights of one slice of few tokens, at most: what a thread holds that others disturb
constexpr int64_t kLogits = 512;               // of a token at a time, where only the likeliest is wanted
constexpr int64_t kItemBytes = 512 << 10;      // weights of one item, where several matrices are one job
constexpr int64_t kTiledItemTokens = 256, kTiledItemPanels = 32;  // where they are multiplied as tiles: the next block is fetched within an item
constexpr int64_t kGatedTokens = 7;            // from which on vectors multiply two panels at a time
constexpr int64_t kBlock = 4;                  // panels that slices are cut by: the widest tile

// One buffer a thread that calls, kept: a step's products follow one another.
struct Buffer {
  char* data = nullptr;
  int64_t size = 0;
  ~Buffer() { ::operator delete(data, std::align_val_t{64}); }
  void* need(int64_t bytes) {
    if (bytes > size) {
      ::operator delete(data, std::align_val_t{64});
      data = nullptr, size = 0;  // should there be no memory
      data = static_cast<char*>(::operator new(static_cast<size_t>(bytes), std::align_val_t{64}));
      size = bytes;
    }
    return data;
  }
};

thread_local Buffer buffer;

int64_t words_of(const PackedMatrix& m, Operand operand) {
  const int64_t step = operand == Operand::f32 ? 1 : operand == Operand::bf16 ? 2 : 4;  // inputs in a word
  return (m.blocks() * m.block() + step - 1) / step;
}

// Tokens a multiple of 1 KiB apart would share a few sets of the first-level cache: a tile of twelve would not fit.
bool crowded(int64_t bytes, int64_t count) { return count > 4 && bytes % 1024 == 0; }

bool has_sums(const PackedMatrix& m, Operand operand) {
  return operand == Operand::s8 || m.zeros != nullptr;
}

}  // namespace

PackedMatrix expert_of(const PackedMatrix& stack, int64_t e) {
  PackedMatrix m = stack;
  const int64_t numbers = e * m.panels() * m.groups() * kPanel;
  m.data += e * m.panels() * m.panel_bytes();
  if (m.scales) m.scales = static_cast<const char*>(m.scales) + numbers * (m.wide_scales ? 4 : 2);
  if (m.zeros) m.zeros += numbers;
  if (m.windows) m.windows += e * m.panels();
  return m;
}

Operand operand_of(const PackedMatrix& matrix, Dtype tokens, bool dynamic, const std::string& isa) {
  const Format format = matrix.format;
  if (dynamic) {
    if (format != Format::int8 && format != Format::int4 && format != Format::ternary)
      throw std::invalid_argument("dynamic quantization needs weights of int8, int4 or ternary");
    return Operand::s8;
  }
  const bool exact = format != Format::fp32 && format != Format::fp16 && format != Format::nf4 && !matrix.opened();
  if (!exact || tokens != Dtype::bf16 || isa_index(isa) < kPairsIsa) return Operand::f32;
  const bool by_floats = format == Format::bf16 || format == Format::bf12 || format == Format::int8;
  return by_floats && isa_index(isa) == kSlowPairsIsa ? Operand::f32 : Operand::bf16;
}

bool multiplies_tiles(Operand operand, const std::string& isa) {
  return operand != Operand::f32 && isa_index(isa) >= kTilesIsa;
}

bool usable_in_place(const PackedMatrix& m, Operand operand, Dtype dtype, int64_t stride, int64_t count) {
  if (operand == Operand::s8 || has_sums(m, operand) || m.low_rank() || m.format == Format::dgq) return false;
  const bool same = operand == Operand::f32 ? dtype == Dtype::f32 : dtype == Dtype::bf16;
  const int64_t width = size_of(dtype);
  return same && m.inputs % m.block() == 0 && stride * width % 4 == 0 && !crowded(stride * width, count);
}

bool ends_gated(const PackedMatrix& m, Operand operand, Dtype dtype, int64_t count, const std::string& isa) {
  const bool as_stored = operand == Operand::s8 || m.format == Format::bf16;
  const bool can = (as_stored && count >= kGatedTokens) || (m.group == 0 && multiplies_tiles(operand, isa));
  return can && dtype == Dtype::bf16 && m.outputs % (2 * kPanel) == 0 && isa_index(isa) >= kPairsIsa;
}

bool passes_tiles(const PackedMatrix& gated, bool dynamic, const PackedMatrix& next, bool next_dynamic, int64_t count, const std::string& isa) {
  const bool whole = gated.group == 0 && next.group == 0 && next.inputs % kTileColumns == 0 && gated.outputs == 2 * next.inputs;
  return whole && count <= kTileColumns && operand_of(next, Dtype::bf16, next_dynamic, isa) != Operand::f32 &&
         multiplies_tiles(operand_of(gated, Dtype::bf16, dynamic, isa), isa);
}

bool leaves_tiles(const PackedMatrix& m, bool dynamic, int64_t count, const std::string& isa) {
  return m.group == 0 && m.outputs % kTileColumns == 0 && count <= kTileColumns &&
         multiplies_tiles(operand_of(m, Dtype::bf16, dynamic, isa), isa);
}

int64_t prepared_bytes(const PackedMatrix& m, Operand operand, int64_t count) {
  const Tokens t = prepared_in(m, operand, count, nullptr);
  return count * (t.steps * 4 + (operand == Operand::s8 ? 8 : has_sums(m, operand) ? 4 : 0) * m.groups() + t.rank * 4);
}

Tokens prepared_in(const PackedMatrix& m, Operand operand, int64_t count, void* memory) {
  Tokens t;
  t.operand = operand, t.count = count, t.rank = m.low_rank();
  t.steps = words_of(m, operand);
  if (crowded(t.steps * 4, count)) t.steps += 16;
  auto* const words = static_cast<uint32_t*>(memory);
  t.data = words;
  if (memory == nullptr) return t;
  uint32_t* const numbers = words + count * t.steps;
  if (has_sums(m, operand)) t.sums = numbers;
  if (t.rank) t.low = reinterpret_cast<float*>(numbers);  // these have no sums
  if (operand == Operand::s8) t.scales = reinterpret_cast<float*>(numbers + count * m.groups());
  return t;
}

namespace {

void check(const PackedMatrix& m, Operand operand) {
  if (m.inputs > 65536 && operand == Operand::s8 && m.group == 0)
    throw std::invalid_argument("more than 65536 inputs would overflow 32-bit sums");
}

// Tokens in tiles become integers: each thread takes the columns that it made (a share of the rows of the product before), which lie in its
// cache. By tokens half of the lines are another's and 2 KB apart (32 tokens of 8192 inputs: 56 us so, 33 where they lie in rows).
void quantize_in_tiles(const PrepareArgs& p, int num_threads, const std::string& isa) {
  const auto find = PAGODA_BODY(isa, size_tiles);
  const auto quantize = PAGODA_BODY(isa, quantize_tiles);
  const int64_t tiles = p.matrix->inputs / kTileColumns, parts = std::min<int64_t>({int64_t{num_threads}, tiles, kMostShares});
  struct Part {
    float sizes[kTileColumns];
    uint32_t sums[kTileColumns];
  } of[kMostShares];
  const auto column = [&](int64_t part) { return part * tiles / parts * kTileColumns; };
  parallel_for(parts, num_threads, [&](int64_t i) { find(p, column(i), column(i + 1), of[i].sizes); });
  float sizes[kTileColumns];
  for (int64_t t = 0; t < p.out.count; ++t) {
    int32_t most = 0, bits;  // as integers: a NaN is larger than everything
    for (int64_t i = 0; i < parts; ++i) std::memcpy(&bits, of[i].sizes + t, 4), most = std::max(most, bits);
    std::memcpy(sizes + t, &most, 4);
  }
  parallel_for(parts, num_threads, [&](int64_t i) { quantize(p, column(i), column(i + 1), sizes, of[i].sums); });
  auto* const sums = const_cast<uint32_t*>(p.out.sums);
  for (int64_t t = 0; t < p.out.count; ++t) {
    sums[t] = 0;
    for (int64_t i = 0; i < parts; ++i) sums[t] += of[i].sums[t];
  }
}

// x [count][inputs] as the bodies read it: where it lies, or prepared in this thread's buffer. With `rows` each token is that row of x;
// x may lie in tiles (passes_tiles).
Tokens tokens_of(const PackedMatrix& m, Operand operand, const void* x, int64_t count, Dtype dtype, int num_threads,
                 const std::string& isa, const int32_t* rows = nullptr, bool in_tiles = false) {
  if (in_tiles && operand == Operand::bf16) {
    Tokens t;
    t.operand = operand, t.count = count, t.data = static_cast<const uint32_t*>(x);
    t.steps = kTileColumns / 2, t.tile_steps = t.steps * count;
    return t;
  }
  if (!rows && !in_tiles && usable_in_place(m, operand, dtype, m.inputs, count)) {
    Tokens t;
    t.operand = operand, t.count = count, t.steps = m.inputs * size_of(dtype) / 4, t.data = static_cast<const uint32_t*>(x);
    return t;
  }
  const auto prepare = PAGODA_BODY(isa, prepare_tokens);
  PrepareArgs p;
  p.matrix = &m, p.x = x, p.dtype = dtype, p.stride = m.inputs;
  p.out = prepared_in(m, operand, count, buffer.need(prepared_bytes(m, operand, count)));
  if (in_tiles) {
    p.tile = kTileColumns * count;
    quantize_in_tiles(p, num_threads, isa);
    return p.out;
  }
  const int64_t part = 16, parts = (count + part - 1) / part;
  parallel_for(parts, num_threads, [&](int64_t i) {
    const int64_t first = i * part, end = std::min(count, first + part);
    if (!rows) return prepare(p, first, end);
    for (int64_t t = first; t < end; ++t) {
      PrepareArgs one = p;
      one.x = static_cast<const char*>(x) + (rows[t] - t) * m.inputs * size_of(dtype);  // so that its row t is this one
      prepare(one, t, t + 1);
    }
  });
  return p.out;
}

auto rows_of(const PackedMatrix& m, Operand operand, const std::string& isa) {
#ifdef PAGODA_AMX
  if (multiplies_tiles(operand, isa)) return m.group == 0 ? &amx::packed_tiles : &amx::grouped_tiles;
#endif
  return PAGODA_BODY(isa, packed_rows);
}

// A block of the rows; those of a gated product are in both halves of the matrix.
Following block_of(const PackedMatrix& m, bool gated, int64_t block) {
  const int64_t bytes = m.panel_bytes();
  return {m.data + block * kBlock * bytes, bytes, (gated ? m.panels() / 2 : 1) * bytes};
}

// Where a share of the rows begins, if all of them are cut into blocks.
Following beginning(const PackedMatrix& m, bool gated, int64_t share, int64_t shares) {
  const int64_t panels = m.panels() / (gated ? 2 : 1), blocks = (panels + kBlock - 1) / kBlock;
  return block_of(m, gated, share * blocks / shares);
}

// Few tokens: threads follow their shares of the rows through memory, each slice fetching the beginning of the next one, or going on with it, the last one
// that of the product after this one.
template <typename Rows>
void follow_one(const LinearSlice& s, const PackedLinearArgs& a, int num_threads, Rows rows) {
  const PackedMatrix& m = s.matrix;
  const int64_t panels = (s.rows() + kPanel - 1) / kPanel, blocks = (panels + kBlock - 1) / kBlock;
  const int64_t block_bytes = kBlock * m.panel_bytes() * (s.gated ? 2 : 1), most = std::max<int64_t>(1, kSliceBytes / block_bytes);
  const int64_t shares = std::min<int64_t>({int64_t{num_threads}, blocks, kMostShares});
  const auto row_of = [&](int64_t block) { return std::min(s.rows(), block * kBlock * kPanel); };
  parallel_shares(blocks, num_threads, most, [&](int64_t first, int64_t end, int64_t share, auto further) {
    const auto behind = [&](int64_t block) -> Following {
      if (share < 0) return {};
      const bool here = block < (share + 1) * blocks / shares;
      if (here) return block_of(m, s.gated, block);
      return a.following && a.following->data ? beginning(*a.following, a.following_gated, share, shares) : Following{};
    };
    auto take = [&](Following* next) {
      const int64_t block = further();
      *next = behind(block);
      return row_of(block);
    };
    LinearSlice own = s;
    own.next = behind(end);
    own.further = {[](void* act, Following* next) { return (*static_cast<decltype(take)*>(act))(next); }, &take};
    rows(own, row_of(first), row_of(end));
  });
}

// The same for several matrices, one behind the other.
template <typename Rows>
void follow_several(const std::vector<LinearSlice>& slices, const std::vector<int64_t>& first_blocks, int num_threads, Rows rows) {
  const int64_t blocks = first_blocks.back(), shares = std::min<int64_t>({int64_t{num_threads}, blocks, kMostShares});
  const int64_t block_bytes = kBlock * slices[0].matrix.panel_bytes() * (slices[0].gated ? 2 : 1), most = std::max<int64_t>(1, kSliceBytes / block_bytes);
  parallel_shares(blocks, num_threads, most, [&](int64_t first, int64_t end, int64_t share, const auto&) {
    size_t group = std::upper_bound(first_blocks.begin(), first_blocks.end(), first) - first_blocks.begin() - 1;
    for (; first < end; ++group) {
      LinearSlice own = slices[group];
      const int64_t base = first_blocks[group], stop = std::min(end, first_blocks[group + 1]);
      if (share >= 0 && stop < (share + 1) * blocks / shares) {
        const bool same = stop < first_blocks[group + 1];
        const LinearSlice& next = same ? own : slices[group + 1];
        own.next = block_of(next.matrix, next.gated, same ? stop - base : 0);
      }
      rows(own, (first - base) * kBlock * kPanel, std::min(own.rows(), (stop - base) * kBlock * kPanel));
      first = stop;
    }
  });
}

// A product cut into items: parts of the tokens times parts of the rows.
class Cut {
 public:
  // Few tokens: few long slices. Many tokens: small ones, which end together.
  Cut(const LinearSlice& slice, int num_threads, bool tiles)
      : s(slice), blocks(((s.rows() + kPanel - 1) / kPanel + kBlock - 1) / kBlock), most_tokens(tiles ? kTiledItemTokens : kItemTokens) {
    token_parts = (s.x.count + most_tokens - 1) / most_tokens;
    const int64_t long_ones = s.matrix.panels() * s.matrix.panel_bytes() / kItemBytes;
    const int64_t few = std::clamp<int64_t>(long_ones, 2 * num_threads, 8 * num_threads);
    parts = std::min(blocks, std::max<int64_t>(few, s.x.count > kOnceTokens ? s.matrix.panels() / (tiles ? kTiledItemPanels : kItemPanels) : 0));
  }

  int64_t items() const { return parts * token_parts; }

  template <typename Rows>
  void run(int64_t item, Rows rows) const {
    const int64_t token = item % token_parts * most_tokens, part = item / token_parts;
    const int64_t row = part * blocks / parts * kBlock * kPanel, end = (part + 1) * blocks / parts * kBlock * kPanel;
    LinearSlice own = s;
    own.x = s.x.from(token, s.matrix.groups());
    own.x.count = std::min(own.x.count, most_tokens);
    own.out = static_cast<char*>(s.out) + token * s.out_stride * (s.wide ? 4 : size_of(s.dtype));
    rows(own, row, std::min(s.rows(), end));
  }

 private:
  LinearSlice s;
  int64_t blocks, most_tokens, token_parts, parts;
};

}  // namespace

namespace {

// All of a product; its threads.
LinearSlice whole(const PackedLinearArgs& a, Operand operand, int& num_threads, const std::string& isa) {
  const PackedMatrix& m = a.matrix;
  check(m, operand);
  LinearSlice s;
  s.matrix = m, s.bias = a.bias, s.out = a.out, s.dtype = a.dtype, s.gated = a.gated, s.out_stride = s.rows();
  s.wide = a.wide && a.dtype != Dtype::f32;
  if (a.to_tiles) s.out_stride = kTileColumns, s.out_tile = kTileColumns * a.count;
  s.x = tokens_of(m, operand, a.x, a.count, a.dtype, num_threads, isa, nullptr, a.from_tiles);
  if (m.panels() * m.panel_bytes() * std::max<int64_t>(1, a.count / 4) < kParallelBytes) num_threads = 1;
  return s;
}

// A place among others, in order: larger numbers first, of equals the first; numbers that are none before all.
uint64_t order_of(float value, int64_t place) {
  if (value != value) return ~uint64_t{0};
  uint32_t bits;
  const float one_zero = value + 0.0f;  // -0 is no less than 0
  std::memcpy(&bits, &one_zero, sizeof bits);
  bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  return uint64_t{bits} << 32 | (0xffffffffu - static_cast<uint32_t>(place));
}

constexpr uint64_t kLargest = 0xff800000ull << 32, kLeast = 0x00800000ull << 32;  // infinity of either sign begins so

// Of tokens, whoever finds them.
class Likeliest {
 public:
  explicit Likeliest(int64_t count) {
    for (int64_t t = 0; t < count; ++t) best_[t].store(0, std::memory_order_relaxed);
  }

  void note(int64_t token, float value, int64_t row) {
    const uint64_t order = order_of(value, row);
    for (uint64_t seen = best_[token].load(std::memory_order_relaxed); seen < order && !best_[token].compare_exchange_weak(seen, order);) {}
  }

  void note(int64_t token, const Largest& found) {
    float top = found.top[0];
    for (float lane : found.top) top = std::max(top, lane);
    int32_t row = INT32_MAX;
    for (int64_t i = 0; i < kPanel; ++i) row = std::min(row, found.top[i] == top ? found.row[i] : INT32_MAX);
    note(token, found.none ? std::numeric_limits<float>::quiet_NaN() : top, row);
  }

  int64_t id(int64_t token) const {
    const uint64_t order = best_[token].load(std::memory_order_relaxed);
    return order >= kLargest || order < kLeast ? -1 : 0xffffffff - static_cast<int64_t>(order & 0xffffffff);
  }

 private:
  std::atomic<uint64_t> best_[kOnceTokens];
};

}  // namespace

void packed_likeliest(const PackedLinearArgs& args, int64_t* ids, int num_threads, const std::string& isa) {
  if (args.count > kOnceTokens) throw std::invalid_argument("the likeliest of " + std::to_string(args.count) + " tokens at once, 64 at most");
  PackedLinearArgs a = args;
  a.wide = true, a.gated = false;
  const Operand operand = operand_of(a.matrix, a.dtype, a.dynamic, isa);
  const auto rows = rows_of(a.matrix, operand, isa);
  const auto largest = PAGODA_BODY(isa, largest_of);
  const bool compared = a.matrix.group == 0 && multiplies_tiles(operand, isa);  // by the rows' body
  const LinearSlice all = whole(a, operand, num_threads, isa);
  Likeliest best(a.count);
  follow_one(all, a, num_threads, [&](const LinearSlice& slice, int64_t first, int64_t end) {
    LinearSlice s = slice;
    if (compared) {
      Largest found[kOnceTokens];
      for (int64_t t = 0; t < a.count; ++t) {
        std::fill_n(found[t].top, kPanel, -std::numeric_limits<float>::infinity());
        std::fill_n(found[t].row, kPanel, static_cast<int32_t>(first));
        found[t].none = false;
      }
      s.largest = found;
      rows(s, first, end);
      for (int64_t t = 0; t < a.count; ++t) best.note(t, found[t]);
      return;
    }
    static thread_local Buffer memory;  // what runs inside has a thread's other one
    auto* const logits = static_cast<float*>(memory.need(a.count * kLogits * 4));
    s.further = {};
    for (int64_t row = first; row < end; row += kLogits) {
      const int64_t stop = std::min(end, row + kLogits), bytes = a.matrix.panel_bytes();
      s.out = logits - row, s.out_stride = kLogits, s.next = slice.next;
      if (stop < end) s.next = {a.matrix.data + stop / kPanel * bytes, bytes, bytes};
      rows(s, row, stop);
      for (int64_t t = 0; t < a.count; ++t) {
        float value;
        int64_t place;
        largest(logits + t * kLogits, stop - row, &value, &place);
        best.note(t, value, row + place);
      }
    }
  });
  for (int64_t t = 0; t < a.count; ++t) ids[t] = best.id(t);
}

void packed_linear(const PackedLinearArgs& a, int num_threads, const std::string& isa) {
  const PackedMatrix& m = a.matrix;
  const Operand operand = operand_of(m, a.dtype, a.dynamic, isa);
  const auto rows = rows_of(m, operand, isa);
  const LinearSlice s = whole(a, operand, num_threads, isa);
  if (s.x.count <= kOnceTokens) return follow_one(s, a, num_threads, rows);
  const Cut cut(s, num_threads, multiplies_tiles(operand, isa));
  parallel_for(cut.items(), num_threads, [&](int64_t i) { cut.run(i, rows); });
}

void grouped_linear(const GroupedLinearArgs& a, int num_threads, const std::string& isa) {
  if (a.groups.empty()) return;
  const PackedMatrix& like = a.groups[0].matrix;
  const Operand operand = operand_of(like, a.dtype, a.dynamic, isa);
  const auto rows = rows_of(like, operand, isa);
  check(like, operand);
  const Tokens x = tokens_of(like, operand, a.x, a.count, a.dtype, num_threads, isa, a.rows);
  const bool tiles = multiplies_tiles(operand, isa);
  static thread_local std::vector<LinearSlice> kept_slices;
  static thread_local std::vector<int64_t> kept_blocks;
  std::vector<LinearSlice>& slices = kept_slices;  // by name: threads have their own
  std::vector<int64_t>& first_blocks = kept_blocks;
  slices.clear(), first_blocks.assign(1, 0);
  int64_t token = 0, bytes = 0, most = 0;
  for (const GroupedLinearArgs::Group& group : a.groups) {
    const PackedMatrix& m = group.matrix;
    if (m.opened()) throw std::invalid_argument("a grouped product needs weights in panels");
    if (m.format != like.format || m.inputs != like.inputs || m.outputs != like.outputs || m.group != like.group ||
        (m.zeros == nullptr) != (like.zeros == nullptr))
      throw std::invalid_argument("the matrices of a grouped product differ in format or shape");
    LinearSlice s;
    s.matrix = m, s.bias = group.bias, s.dtype = a.dtype, s.gated = a.gated, s.out_stride = s.rows();
    s.out = static_cast<char*>(a.out) + token * s.rows() * size_of(a.dtype);
    s.x = x.from(token, m.groups());
    s.x.count = group.count;
    token += group.count, most = std::max(most, group.count), bytes += m.panels() * m.panel_bytes() * std::max<int64_t>(1, group.count / 4);
    slices.push_back(s);
    first_blocks.push_back(first_blocks.back() + ((s.rows() + kPanel - 1) / kPanel + kBlock - 1) / kBlock);
  }
  if (token != a.count) throw std::invalid_argument("the groups' tokens are not all the tokens");
  if (bytes < kParallelBytes) num_threads = 1;
  if (most <= kOnceTokens) return follow_several(slices, first_blocks, num_threads, rows);
  static thread_local std::vector<Cut> kept_cuts;
  static thread_local std::vector<int64_t> kept_items;
  std::vector<Cut>& cuts = kept_cuts;
  std::vector<int64_t>& first_items = kept_items;
  cuts.clear(), first_items.assign(1, 0);
  for (const LinearSlice& s : slices) {
    cuts.emplace_back(s, 1, tiles);  // many matrices: two slices each are enough
    first_items.push_back(first_items.back() + cuts.back().items());
  }
  parallel_for(first_items.back(), num_threads, [&](int64_t i) {
    const int64_t group = std::upper_bound(first_items.begin(), first_items.end(), i) - first_items.begin() - 1;
    cuts[group].run(i - first_items[group], rows);
  });
}

}  // namespace pagoda
