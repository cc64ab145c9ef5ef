#include "program.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include "page_codes.hpp"
#include "pages.hpp"
#include "parallel_shares.hpp"

namespace pagoda {

namespace {

constexpr int64_t kAlign = 64;
constexpr int64_t kTurned = 8192;  // elements that are turned and written, or copied, by one item

using Clock = std::chrono::steady_clock;

int64_t since(Clock::time_point started) { return std::chrono::nanoseconds(Clock::now() - started).count(); }

// Asks for the lines of the slots that will be written, which nobody has read since the step before: the rows of K and V. An instruction that the
// compiler keeps; it does nothing where an id is none.
void ask_to_write(const WriteArgs& a) {
#if defined(__x86_64__)
  const auto *ids = static_cast<const int32_t*>(a.page_ids), *slots = static_cast<const int32_t*>(a.slots);
  for (int64_t i = 0; i < a.tokens * a.heads; ++i) {
    const char* const page = a.pages + ids[i] * a.shape.page_bytes;
    for (const Plane& plane : {a.shape.k, a.shape.v}) {
      const char* const row = page + plane.at + slots[i] * plane.bytes;
      for (int64_t at = 0; at < plane.bytes; at += 64) __asm__ volatile("prefetchw %0" : : "m"(row[at]));
    }
  }
#else
  (void)a;
#endif
}

int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// One run: where the registers are, and what every kind of instruction does with them.
struct Run {
  const StepArrays& step;
  const Dtype dtype;
  const std::vector<int64_t>& widths;
  const int threads;
  const std::string& isa;
  const bool watched;
  RunMemory& memory;
  int64_t num_tokens;
  int64_t first = 0;  // token of the step, where only some pass
  bool activated = false, found = false;  // by the product before: what the activation, the search for the likeliest would do
  bool tiled = false, branch_tiled = false;  // and its results lie in tiles, for the next product, for the next sum
  Program::Part choosing, encoding;  // of attention, where somebody watches

  char* at(int reg, int64_t element = 0) const {
    return memory.registers[reg] + ((memory.passing[reg] ? 0 : first * widths[reg]) + element) * size_of(dtype);
  }

  void operator()(const NormStep& i) const {
    NormArgs a = i.args;
    a.x = at(i.src), a.out = at(i.dst), a.rows = num_tokens, a.dtype = dtype;
    a.row_stride = widths[i.src], a.out_stride = widths[i.dst];
    if (i.branch < 0) norm(a, threads, isa);
    else add_norm(sum_of(i.src, i.branch, i.scale, branch_tiled), a, threads, isa);
  }

  void operator()(const HeadNormStep& i) const {
    NormArgs a = i.args;
    a.x = a.out = at(i.reg, i.at), a.rows = num_tokens, a.dtype = dtype;
    a.row_stride = a.out_stride = widths[i.reg];
    norm(a, threads, isa);
  }

  void operator()(const LinearStep& i) {
    PackedLinearArgs a;
    a.matrix = i.matrix, a.bias = i.bias, a.dynamic = i.dynamic, a.following = &i.following;
    a.x = at(i.src), a.out = at(i.dst), a.count = num_tokens, a.dtype = dtype;
    a.gated = i.gated >= 0 && can_gate(a.matrix, a.dynamic);
    a.following_gated = i.following_gated && can_gate(i.following, i.following_dynamic);
    if (a.gated) a.out = at(i.gated);
    activated = a.gated;
    a.from_tiles = tiled;
    tiled = a.to_tiles = a.gated && i.feeds && passes_tiles(a.matrix, a.dynamic, i.following, i.following_dynamic, a.count, isa);
    branch_tiled = i.summed && dtype == Dtype::bf16 && leaves_tiles(a.matrix, a.dynamic, a.count, isa);
    a.to_tiles = a.to_tiles || branch_tiled;
    packed_linear(a, threads, isa);
  }

  bool can_gate(const PackedMatrix& matrix, bool dynamic) const {
    return ends_gated(matrix, operand_of(matrix, dtype, dynamic, isa), dtype, num_tokens, isa);
  }

  void operator()(const ActivationStep& i) {
    if (activated) {  // by the product before
      activated = false;
      return;
    }
    ActivationArgs a;
    a.rows = num_tokens, a.width = widths[i.src] / (i.gated ? 2 : 1), a.dtype = dtype;
    a.gate = at(i.src), a.up = i.gated ? at(i.src, a.width) : nullptr, a.out = at(i.dst);
    a.row_stride = widths[i.src], a.out_stride = widths[i.dst];
    a.kind = i.kind, a.alpha = i.alpha, a.limit = i.limit;
    activation(a, threads, isa);
  }

  void operator()(const AddStep& i) const { add(sum_of(i.dst, i.src, i.scale, false), threads, isa); }

  AddArgs sum_of(int dst, int branch, float scale, bool in_tiles) const {
    AddArgs a;
    if (in_tiles) a.width = widths[dst], a.tile = kTileColumns * num_tokens;
    a.x = at(dst), a.branch = at(branch), a.count = num_tokens * widths[dst], a.dtype = dtype, a.scale = scale;
    return a;
  }

  void operator()(const ClipStep& i) const {
    clip(at(i.reg), num_tokens, widths[i.reg], widths[i.reg], dtype, i.bound, isa);
  }

  void operator()(const RotaryStep& i) const { rotary(turn_of(i), threads, isa); }

  RotaryArgs turn_of(const RotaryStep& i) const {
    const RotaryTableRef& table = step.rotary[i.table];
    RotaryArgs a;
    a.x = at(i.reg, i.first), a.rows = num_tokens, a.heads = i.heads, a.dim = i.dim, a.row_stride = widths[i.reg];
    a.dtype = dtype, a.cos = table.cos, a.sin = table.sin, a.angle_dtype = table.dtype, a.pairs = table.pairs;
    a.positions = step.positions, a.interleaved = i.interleaved;
    return a;
  }

  void operator()(const LatentStep& i) const {
    const int64_t dim = i.rank + i.rope, size = size_of(dtype);
    HeadProductArgs a;
    a.x = at(i.queries), a.x_token = widths[i.queries], a.x_head = i.nope + i.rope, a.out = at(i.dst), a.out_token = widths[i.dst], a.out_head = dim;
    a.weight = i.key_up, a.tokens = num_tokens, a.heads = i.heads, a.rows = i.nope, a.columns = i.rank, a.down = true, a.dtype = dtype;
    head_products(a, threads, isa);
    const int64_t some = std::max<int64_t>(1, kTurned / ((i.heads + 1) * i.rope + i.rank));
    parallel_for((num_tokens + some - 1) / some, threads, [&](int64_t item) {
      for (int64_t t = item * some; t < std::min(num_tokens, (item + 1) * some); ++t) {
        const char* const q = at(i.queries, t * widths[i.queries]);
        char* const to = at(i.dst, t * widths[i.dst]);
        for (int64_t h = 0; h < i.heads; ++h)
          std::memcpy(to + (h * dim + i.rank) * size, q + (h * (i.nope + i.rope) + i.nope) * size, i.rope * size);
        std::memcpy(to + i.heads * dim * size, at(i.down, t * widths[i.down] + i.slot_at), dim * size);
      }
    });
  }

  void operator()(const HeadProductStep& i) const {
    HeadProductArgs a;
    a.x = at(i.src), a.x_token = widths[i.src], a.x_head = i.columns, a.out = at(i.dst), a.out_token = widths[i.dst], a.out_head = i.rows;
    a.weight = i.weight, a.tokens = num_tokens, a.heads = i.heads, a.rows = i.rows, a.columns = i.columns, a.dtype = dtype;
    head_products(a, threads, isa);
  }

  void operator()(const LogitsStep& i) const {
    memory.logits.resize(num_tokens * i.outputs);
    if (i.matrix.outputs) {
      PackedLinearArgs a;
      a.matrix = i.matrix, a.bias = i.bias, a.dynamic = i.dynamic, a.wide = true;
      a.x = at(i.src), a.out = memory.logits.data(), a.count = num_tokens, a.dtype = dtype;
      return packed_linear(a, threads, isa);
    }
    RouterArgs a;
    a.x = at(i.src), a.weight = i.weight, a.bias = i.bias, a.dtype = dtype, a.tokens = num_tokens, a.hidden = widths[i.src];
    a.experts = i.outputs, a.exact = i.exact, a.logits = memory.logits.data();
    router_logits(a, threads, isa);
  }

  void operator()(const RouteStep& i) const {
    memory.experts.resize(num_tokens * i.rule.top_k), memory.weights.resize(num_tokens * i.rule.top_k);
    route(i.rule, memory.logits.data(), i.correction, num_tokens, dtype, memory.experts.data(), memory.weights.data(), threads, isa);
  }

  void operator()(const ExpertsStep& i) const {
    ExpertsArgs a;
    a.experts = &i.experts, a.x = at(i.src), a.out = at(i.dst), a.dtype = dtype, a.tokens = num_tokens, a.top_k = i.top_k;
    a.ids = memory.experts.data(), a.weights = memory.weights.data(), a.scratch = memory.scratch;
    run_experts(a, memory.sorted, threads, isa);
  }

  void operator()(const GateStep& i) const {
    gate({at(i.reg), memory.logits.data(), widths[i.reg], dtype}, num_tokens, threads, isa);
  }

  void operator()(const EmbedStep& i) const {
    if (!step.x) packed_embedding(i.matrix, step.ids, num_tokens, at(0), dtype, threads);
  }

  void operator()(const HeadStep& i) {
    if (!step.logits) return;
    PackedLinearArgs a;
    a.matrix = i.matrix, a.bias = i.bias, a.dynamic = i.dynamic, a.following = &i.following, a.wide = true;
    a.x = at(0), a.out = step.logits, a.count = num_tokens, a.dtype = dtype;
    found = step.likeliest && num_tokens <= kOnceTokens;
    if (found) {
      packed_likeliest(a, step.likeliest, threads, isa);
      found = std::all_of(step.likeliest, step.likeliest + num_tokens, [](int64_t id) { return id >= 0; });
    }
    if (!found) packed_linear(a, threads, isa);  // whoever asked looks at what is no number
  }

  void operator()(const GreedyStep& i) const {
    if (step.likeliest && !found) greedy(step.logits, num_tokens, i.width, step.likeliest, threads, isa);
  }

  void operator()(const AttendStep& i) {
    if (step.attend) {
      if (i.rotary) (*this)(*i.rotary);
      step.attend(i.layer, at(i.src), at(i.dst));
      if (i.last && step.num_wanted >= 0) move_wanted();
      return;
    }
    const int64_t q_size = i.num_q_heads * i.dim, kv_size = i.num_kv_heads * i.dim;
    if (step.coded.sides) {
      turn_and_write_raw(i, at(i.src, q_size), at(i.src, q_size + kv_size));
      encode_raw(i);
    } else {
      turn_and_write(i, write_of(i, at(i.src, q_size), at(i.src, q_size + kv_size)));
    }
    note_queries(step.queries, i.layer, step.num_seqs, step.q_starts,
                 {at(i.src), widths[i.src] * size_of(dtype), q_size * size_of(dtype)}, threads);
    AttentionArgs a;
    a.q = at(i.src), a.q_token_stride = widths[i.src], a.q_head_stride = i.dim, a.out = at(i.dst), a.dtype = dtype;
    a.pages = step.pages, a.num_pages = step.num_pages, a.shape = step.shape, a.v_dim = i.v_dim ? i.v_dim : i.dim;
    if (step.coded.sides) a.coded = &memory.coded;
    a.rows = step.rows + i.layer * step.rows_stride, a.num_rows = step.num_rows, a.max_pages = step.max_pages;
    a.row_of = step.row_of, a.offset = step.offset + i.layer * step.num_seqs * i.num_kv_heads;
    a.kv_lens = step.kv_lens + i.layer * step.lens_stride, a.q_starts = step.q_starts;
    a.are_wide = step.are_wide, a.num_seqs = step.num_seqs, a.num_tokens = num_tokens;
    a.num_q_heads = i.num_q_heads, a.num_kv_heads = i.num_kv_heads;
    a.scale = i.scale, a.soft_cap = i.soft_cap, a.window = i.window, a.sinks = i.sinks, a.slopes = i.slopes;
    const bool chosen_here = step.choice.count > 0;  // in a table that is written anew for every layer
    if (chosen_here) choose(a, i.layer);
    const bool fewer = i.last && step.num_wanted >= 0;
    sum_into(a, i.layer);
    weigh_slots(a, i.layer);
    if (fewer) {
      find_wanted();
      find_attending();
      keep_last(step.q_starts, memory.attending_starts);
      a.q_starts = memory.attending_starts.data(), a.chunk_starts = step.q_starts, a.num_tokens = num_tokens;
    }
    if (!chosen_here || memory.chosen.moved.count() < a.num_seqs) paged_attention(a, threads, isa, chosen_here ? &memory.chosen_memo : &memory.memo);
    if (chosen_here) attend_moved(a, memory.chosen.moved, threads, isa);
    if (fewer) keep_last(memory.attending_starts.data(), memory.wanted_starts);
  }

  void choose(AttentionArgs& a, int64_t layer) {
    const auto started = watched ? Clock::now() : Clock::time_point();
    choose_pages(a, step.choice, layer, threads, isa, memory.chosen);
    if (watched) choosing.add(since(started));
  }

  void sum_into(AttentionArgs& a, int64_t layer) {
    if (!step.sums) return;
    memory.targets.clear();
    for (int64_t seq = 0; seq < step.num_seqs; ++seq) {
      const auto place = [&](int64_t address, int64_t width) {
        return address ? reinterpret_cast<float*>(address) + layer * a.num_kv_heads * width : nullptr;
      };
      const int64_t width = step.sum_widths[seq], count_width = step.count_widths[seq];
      memory.targets.push_back({place(step.sums[seq], width), place(step.counts[seq], count_width), width, count_width, step.sum_last[seq]});
    }
    a.sum_targets = memory.targets.data();
  }

  void weigh_slots(AttentionArgs& a, int64_t layer) {
    if (!step.weights) return;
    memory.weights_of.clear();
    for (int64_t seq = 0; seq < step.num_seqs; ++seq)
      memory.weights_of.push_back({reinterpret_cast<const float*>(step.weights[layer * step.num_seqs + seq]), step.weight_widths[seq]});
    a.weights = memory.weights_of.data();
  }

  // Where the wanted tokens of each sequence begin, when there are no others: they must be its last ones.
  void find_wanted() {
    memory.wanted_starts.assign(1, 0);
    int64_t n = 0;
    for (int64_t seq = 0; seq < step.num_seqs; ++seq) {
      const int64_t begin = n, end = step.q_starts[seq + 1];
      while (n < step.num_wanted && step.wanted[n] < end) ++n;
      for (int64_t i = begin; i < n; ++i)
        if (step.wanted[i] != end - n + i || step.wanted[i] < step.q_starts[seq])
          throw std::invalid_argument("wanted tokens must be the last ones of their sequences, in order");
      memory.wanted_starts.push_back(static_cast<int32_t>(n));
    }
    if (n < step.num_wanted) throw std::invalid_argument("a wanted token lies behind the last sequence");
  }

  // The same of those whose attention is needed: the wanted ones, and those that are summed up.
  void find_attending() {
    memory.attending_starts.assign(1, 0);
    for (int64_t seq = 0; seq < step.num_seqs; ++seq) {
      const int32_t all = step.q_starts[seq + 1] - step.q_starts[seq], wanted = memory.wanted_starts[seq + 1] - memory.wanted_starts[seq];
      const int64_t last = step.sums && step.sums[seq] ? (step.sum_last[seq] ? step.sum_last[seq] : all) : 0;
      memory.attending_starts.push_back(memory.attending_starts.back() + std::max(wanted, static_cast<int32_t>(std::min<int64_t>(all, last))));
    }
  }

  // Of each sequence, whose tokens lie at before[seq] … before[seq + 1], the last ones stay: they move up to starts[seq] ….
  void keep_last(const int32_t* before, const std::vector<int32_t>& starts) {
    if (num_tokens == starts.back()) return;
    num_tokens = starts.back();
    for (size_t reg = 0; reg < memory.registers.size(); ++reg) {
      if (memory.passing[reg]) continue;
      const int64_t bytes = widths[reg] * size_of(dtype);
      for (int64_t seq = 0; seq < step.num_seqs; ++seq) {
        const int64_t count = starts[seq + 1] - starts[seq], from = before[seq + 1] - count;
        if (count > 0) std::memmove(memory.registers[reg] + starts[seq] * bytes, memory.registers[reg] + from * bytes, count * bytes);
      }
    }
  }

  void move_wanted() {
    for (int64_t i = 0; i < step.num_wanted; ++i)
      if (step.wanted[i] < (i ? step.wanted[i - 1] + 1 : 0) || step.wanted[i] >= num_tokens)
        throw std::invalid_argument("wanted tokens must be of the step, in order");
    num_tokens = step.num_wanted;
    for (size_t reg = 0; reg < memory.registers.size(); ++reg) {
      if (memory.passing[reg]) continue;
      const int64_t bytes = widths[reg] * size_of(dtype);
      for (int64_t i = 0; i < num_tokens; ++i) std::memmove(memory.registers[reg] + i * bytes, memory.registers[reg] + step.wanted[i] * bytes, bytes);
    }
  }

  // New slots go behind the raw ones of their sequences; `memory` has where all of this layer's are.
  void turn_and_write_raw(const AttendStep& i, const char* k, const char* v) {
    find_raw(i);
    const auto turn = PAGODA_BODY(isa, rotary_rows);
    const RotaryArgs turned = i.rotary ? turn_of(*i.rotary) : RotaryArgs{};
    const int64_t heads = i.num_kv_heads, bytes = i.dim * size_of(dtype), token_bytes = widths[i.src] * size_of(dtype);
    const int64_t all = step.q_starts[step.num_seqs], tokens = std::max<int64_t>(1, kTurned / ((i.num_q_heads + heads) * i.dim));
    parallel_for((num_tokens + tokens - 1) / tokens, threads, [&](int64_t item) {
      const int64_t first = item * tokens, end = std::min(num_tokens, first + tokens);
      if (i.rotary) turn(turned, first, end);
      int64_t seq = std::upper_bound(step.q_starts, step.q_starts + step.num_seqs, first) - step.q_starts - 1;
      for (int64_t t = first; t < std::min(all, end); ++t) {
        while (t >= step.q_starts[seq + 1]) ++seq;
        const RawSlots& raw = memory.raw[seq];
        for (int64_t head = 0; head < heads; ++head) {
          const int64_t from = t * token_bytes + head * bytes, to = (head * raw.room + raw_slot(i, seq, t)) * bytes;
          std::memcpy(const_cast<char*>(raw.k) + to, k + from, bytes);
          std::memcpy(const_cast<char*>(raw.v) + to, v + from, bytes);
        }
      }
    });
  }

  // Which of a sequence's raw slots a token of the step is.
  int64_t raw_slot(const AttendStep& i, int64_t seq, int64_t token) const {
    const int64_t held = step.kv_lens[i.layer * step.lens_stride + seq * i.num_kv_heads];
    return held - (step.q_starts[seq + 1] - token) - step.coded.starts[seq];
  }

  void find_raw(const AttendStep& i) {
    const CodedStep& c = step.coded;
    memory.raw.clear();
    for (int64_t seq = 0; seq < step.num_seqs; ++seq) {
      const int64_t before = i.layer * i.num_kv_heads * c.room[seq] * i.dim * size_of(dtype);
      memory.raw.push_back({reinterpret_cast<char*>(c.k[seq]) + before, reinterpret_cast<char*>(c.v[seq]) + before, c.starts[seq], c.room[seq]});
      const int64_t first = raw_slot(i, seq, step.q_starts[seq]), end = raw_slot(i, seq, step.q_starts[seq + 1]);
      if (first < 0 || end > c.room[seq])
        throw std::out_of_range("raw slots " + std::to_string(first) + " to " + std::to_string(end) + " of " + std::to_string(c.room[seq]));
    }
    memory.raw.push_back({});  // so that there is an address where there are no sequences
    memory.coded.k = c.sides[2 * i.layer], memory.coded.v = c.sides[2 * i.layer + 1];
    memory.coded.raw_store = Store(dtype), memory.coded.raw = memory.raw.data();
  }

  // Raw slots whose pages are whole become codes, which later tokens of this step read, or the next step.
  void encode_raw(const AttendStep& i) {
    const CodedStep& c = step.coded;
    const int64_t heads = i.num_kv_heads, size = step.shape.page_size, bytes = i.dim * size_of(dtype);
    const int32_t *rows = step.rows + i.layer * step.rows_stride, *offset = step.offset + i.layer * step.num_seqs * heads;
    const auto page_of = [&](int64_t pair, int64_t column) {
      return int64_t{rows[step.row_of[pair] * step.max_pages + column]} + offset[pair];
    };
    memory.encoding.clear();
    for (int64_t seq = 0; seq < step.num_seqs; ++seq) {
      if (c.encoded[seq] == 0) continue;
      memory.encoding.push_back(seq);
      const int64_t first = c.starts[seq] / size, last = first + c.encoded[seq] / size;
      for (int64_t pair = seq * heads; pair < (seq + 1) * heads; ++pair) {  // before threads write there
        const bool there = step.row_of[pair] >= 0 && step.row_of[pair] < step.num_rows && first >= 0 && last <= step.max_pages;
        for (int64_t column = first; column < last; ++column)
          if (!there || page_of(pair, column) < 0 || page_of(pair, column) >= step.num_pages)
            throw std::out_of_range("a page to be encoded that is not there");
      }
    }
    if (memory.encoding.empty()) return;
    const auto started = watched ? Clock::now() : Clock::time_point{};
    const auto body = PAGODA_BODY(isa, run_page_codes);
    parallel_for(int64_t(memory.encoding.size()) * heads, threads, [&](int64_t item) {
      const int64_t seq = memory.encoding[item / heads], head = item % heads;
      const RawSlots& raw = memory.raw[seq];
      for (int64_t slot = 0; slot < c.encoded[seq]; slot += size) {
        const int64_t from = (head * raw.room + slot) * bytes, page = page_of(seq * heads + head, (raw.start + slot) / size);
        uint8_t* const to = reinterpret_cast<uint8_t*>(const_cast<char*>(step.pages)) + page * step.shape.page_bytes;
        body({&memory.coded.k, raw.k + from, dtype == Dtype::bf16, size, to, head});
        body({&memory.coded.v, raw.v + from, dtype == Dtype::bf16, size, to, head});
      }
    });
    if (watched) encoding.add(since(started));
  }

  WriteArgs write_of(const AttendStep& i, const char* k, const char* v) {
    const int64_t count = num_tokens * i.num_kv_heads, width = size_of(dtype);
    const int32_t* page_ids = step.page_ids + i.layer * step.writes_stride;
    if (step.writes_stride == 0) {
      std::vector<int32_t>& ids = memory.ids;
      ids.assign(page_ids, page_ids + count);
      for (int32_t& id : ids) id += static_cast<int32_t>(i.layer * i.num_kv_heads);
      page_ids = ids.data();
    }
    const int64_t token = widths[i.src] * width, head = i.dim * width;
    WriteArgs a;
    a.pages = const_cast<char*>(step.pages), a.num_pages = step.num_pages, a.shape = step.shape;
    a.k = {k, token, head}, a.v = {v, token, head}, a.dtype = dtype;
    a.page_ids = page_ids, a.slots = step.slots + i.layer * step.writes_stride;
    a.tokens = num_tokens, a.heads = i.num_kv_heads;
    return a;
  }

  void turn_and_write(const AttendStep& i, const WriteArgs& all) const {
    if (!i.rotary) return kv_write(all, threads, isa);
    const auto turn = PAGODA_BODY(isa, rotary_rows);
    const RotaryArgs turned = turn_of(*i.rotary);
    const int64_t tokens = std::max<int64_t>(1, kTurned / (turned.heads * turned.dim));
    const int some = int(std::min<int64_t>(threads, (num_tokens + tokens - 1) / tokens));
    parallel_shares(num_tokens, some, tokens, [&](int64_t first, int64_t end, int64_t, const auto&) {  // as who chooses and attends has them
      WriteArgs own = all;
      own.tokens = end - first;
      own.k.base += first * all.k.token_stride, own.v.base += first * all.v.token_stride;
      own.page_ids = static_cast<const int32_t*>(all.page_ids) + first * all.heads;
      own.slots = static_cast<const int32_t*>(all.slots) + first * all.heads;
      ask_to_write(own);
      turn(turned, first, end);
      kv_write(own, 1, isa);
    });
  }
};

struct Name {
  std::string operator()(const NormStep& i) const { return i.branch < 0 ? "norm" : "sum and norm"; }
  std::string operator()(const HeadNormStep&) const { return "head norm"; }
  std::string operator()(const LinearStep& i) const {
    return "linear " + std::to_string(i.matrix.outputs) + " x " + std::to_string(i.matrix.inputs);
  }
  std::string operator()(const ActivationStep&) const { return "activation"; }
  std::string operator()(const AddStep&) const { return "add"; }
  std::string operator()(const ClipStep&) const { return "clip"; }
  std::string operator()(const RotaryStep&) const { return "rotary"; }
  std::string operator()(const AttendStep&) const { return "attention"; }
  std::string operator()(const LatentStep&) const { return "latent queries"; }
  std::string operator()(const HeadProductStep&) const { return "latent values"; }
  std::string operator()(const LogitsStep& i) const { return i.outputs == 1 ? "gate" : "router"; }
  std::string operator()(const RouteStep&) const { return "choice of experts"; }
  std::string operator()(const ExpertsStep& i) const {
    return "experts " + std::to_string(i.experts.inner) + " x " + std::to_string(i.experts.hidden);
  }
  std::string operator()(const GateStep&) const { return "gate"; }
  std::string operator()(const EmbedStep&) const { return "embedding"; }
  std::string operator()(const HeadStep& i) const { return (*this)(LinearStep{0, 0, i.matrix}); }
  std::string operator()(const GreedyStep&) const { return "greedy"; }
};

// Whether an instruction reads register `reg`.
struct Reads {
  int reg;
  bool operator()(const NormStep& i) const { return i.src == reg || i.branch == reg; }
  bool operator()(const HeadNormStep& i) const { return i.reg == reg; }
  bool operator()(const LinearStep& i) const { return i.src == reg; }
  bool operator()(const ActivationStep& i) const { return i.src == reg; }
  bool operator()(const AddStep& i) const { return i.src == reg || i.dst == reg; }
  bool operator()(const ClipStep& i) const { return i.reg == reg; }
  bool operator()(const RotaryStep& i) const { return i.reg == reg; }
  bool operator()(const AttendStep& i) const { return i.src == reg; }
  bool operator()(const LatentStep& i) const { return i.down == reg || i.queries == reg; }
  bool operator()(const HeadProductStep& i) const { return i.src == reg; }
  bool operator()(const LogitsStep& i) const { return i.src == reg; }
  bool operator()(const RouteStep&) const { return false; }
  bool operator()(const ExpertsStep& i) const { return i.src == reg; }
  bool operator()(const GateStep& i) const { return i.reg == reg; }
  bool operator()(const EmbedStep&) const { return false; }
  bool operator()(const HeadStep&) const { return reg == 0; }
  bool operator()(const GreedyStep&) const { return false; }
};

// The matrix of a product; null: it is none.
const PackedMatrix* matrix_of(const Instruction& i) {
  if (const auto* linear = std::get_if<LinearStep>(&i)) return &linear->matrix;
  if (const auto* head = std::get_if<HeadStep>(&i)) return &head->matrix;
  return nullptr;
}

void set_following(Instruction& i, const PackedMatrix& matrix) {
  if (auto* linear = std::get_if<LinearStep>(&i)) linear->following = matrix;
  if (auto* head = std::get_if<HeadStep>(&i)) head->following = matrix;
}

}  // namespace

Program::Program(Dtype dtype, std::vector<int64_t> widths, const std::vector<int>& passing) : dtype_(dtype), widths_(std::move(widths)) {
  memory_.passing.resize(widths_.size());
  for (int reg : passing) memory_.passing.at(reg) = true;
}

void Program::push(Instruction instruction) {
  keep_rows_for(instruction);
  if (!instructions_.empty()) {  // is the one before done on the way?
    auto* norm = std::get_if<NormStep>(&instruction);
    auto* attend = std::get_if<AttendStep>(&instruction);
    const auto* sum = std::get_if<AddStep>(&instructions_.back());
    const auto* turn = std::get_if<RotaryStep>(&instructions_.back());
    const bool summed = norm && sum && sum->dst == norm->src && sum->src != norm->dst, turned = attend && turn && turn->reg == attend->src;
    if (summed) norm->branch = sum->src, norm->scale = sum->scale;
    if (turned) attend->rotary = *turn;
    if (summed || turned) instructions_.pop_back();
    auto* product = summed && !instructions_.empty() ? std::get_if<LinearStep>(&instructions_.back()) : nullptr;
    if (product && product->dst == norm->branch && product->dst != norm->src) product->summed = true;
  }
  const auto* act = std::get_if<ActivationStep>(&instruction);
  auto* linear = act && !instructions_.empty() ? std::get_if<LinearStep>(&instructions_.back()) : nullptr;
  if (linear && act->gated && act->kind == Activation::silu && linear->dst == act->src && linear->src != act->dst) {
    linear->gated = act->dst;
    auto* before = product_before_ >= 0 ? std::get_if<LinearStep>(&instructions_[product_before_]) : nullptr;
    if (before) before->following_gated = true, before->following_dynamic = linear->dynamic;
  }
  if (const auto* next = std::get_if<LinearStep>(&instruction); next && instructions_.size() > 1) {
    const auto* done = std::get_if<ActivationStep>(&instructions_.back());
    auto* before = done ? std::get_if<LinearStep>(&instructions_[instructions_.size() - 2]) : nullptr;
    if (before && before->gated == next->src) before->feeds = true, before->following_dynamic = next->dynamic;
  }
  if (std::holds_alternative<ExpertsStep>(instruction)) last_product_ = -1;  // much flows through the caches: nothing is fetched ahead across it
  if (const PackedMatrix* matrix = matrix_of(instruction)) {
    if (last_product_ >= 0) set_following(instructions_[last_product_], *matrix);
    product_before_ = last_product_, last_product_ = static_cast<int>(instructions_.size());
    if (std::holds_alternative<HeadStep>(instruction))
      for (const Instruction& first : instructions_)
        if (const PackedMatrix* found = matrix_of(first)) {
          set_following(instruction, *found);
          break;
        }
  }
  instructions_.push_back(std::move(instruction));
}

void Program::keep_rows_for(const Instruction& reader) {
  std::vector<bool> written(widths_.size());
  for (auto i = instructions_.rbegin(); i != instructions_.rend(); ++i)
    if (auto* product = std::get_if<LinearStep>(&*i); product && !written[product->dst]) {
      written[product->dst] = true;
      if (std::visit(Reads{product->dst}, reader)) product->summed = false;
    }
}

size_t Program::end_of_passing(size_t first) const {
  for (size_t i = first; i < instructions_.size(); ++i) {
    const auto* product = std::get_if<LinearStep>(&instructions_[i]);
    if (i == first && !(product && memory_.passing[product->dst])) break;
    if (product && memory_.passing[product->src] && !memory_.passing[product->dst]) return i + 1;
  }
  return first + 1;
}

int64_t Program::workspace_bytes(int64_t num_tokens) const {
  int64_t bytes = kAlign;
  for (size_t reg = 0; reg < widths_.size(); ++reg) bytes += aligned(rows_of(reg, num_tokens) * widths_[reg] * size_of(dtype_));
  int64_t scratch = 0;
  for (const Instruction& i : instructions_)
    if (const auto* e = std::get_if<ExpertsStep>(&i)) scratch = std::max(scratch, experts_scratch_bytes(e->experts, num_tokens, e->top_k, dtype_));
  return bytes + scratch;
}

void Program::run(const StepArrays& step, void* workspace, int num_threads, const std::string& isa) {
  Run run{step, dtype_, widths_, num_threads, isa, watched_, memory_, step.num_tokens};
  std::vector<char*>& registers = memory_.registers;
  registers.clear(), memory_.memo.forget(), memory_.chosen_memo.forget();
  char* at = reinterpret_cast<char*>(aligned(reinterpret_cast<intptr_t>(workspace)));
  for (size_t reg = 0; reg < widths_.size(); ++reg) {
    registers.push_back(at);
    at += aligned(rows_of(reg, step.num_tokens) * widths_[reg] * size_of(dtype_));
  }
  memory_.scratch = at;
  if (step.x) registers[0] = static_cast<char*>(step.x);
  if (watched_) nanoseconds_.resize(instructions_.size()), calls_.resize(instructions_.size());
  const auto one = [&](size_t i) {
    if (!watched_) return std::visit(run, instructions_[i]);
    const auto started = Clock::now();
    const int64_t parts = run.choosing.nanoseconds + run.encoding.nanoseconds;
    std::visit(run, instructions_[i]);
    nanoseconds_[i] += since(started) - (run.choosing.nanoseconds + run.encoding.nanoseconds - parts);
    ++calls_[i];
  };
  for (size_t i = 0; i < instructions_.size();) {
    const size_t end = run.num_tokens > kPassingTokens ? end_of_passing(i) : i + 1;
    // Parts of nearly equal size, none of so few tokens that results lie in tiles.
    const int64_t all = run.num_tokens, parts = end > i + 1 ? (all + kPassingTokens - 1) / kPassingTokens : 1;
    for (int64_t part = 0; part < parts; ++part) {
      run.first = part * all / parts, run.num_tokens = (part + 1) * all / parts - run.first;
      for (size_t k = i; k < end; ++k) one(k);
      if (parts > 1) run.num_tokens = all;
    }
    run.first = 0, i = end;
  }
  choosing_.add(run.choosing), encoding_.add(run.encoding);
}

std::vector<Program::Timing> Program::timings() const {
  std::vector<Timing> found;
  for (size_t i = 0; i < nanoseconds_.size(); ++i)
    found.push_back({std::visit(Name{}, instructions_[i]), calls_[i], nanoseconds_[i] * 1e-9});
  if (choosing_.calls > 0) found.push_back({"page choice", choosing_.calls, choosing_.nanoseconds * 1e-9});
  if (encoding_.calls > 0) found.push_back({"encoding", encoding_.calls, encoding_.nanoseconds * 1e-9});
  return found;
}

}  // namespace pagoda
