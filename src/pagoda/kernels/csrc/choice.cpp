#include "choice.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "attention_ahead.hpp"
#include "parallel_shares.hpp"

namespace pagoda {

namespace {

struct Working {
  std::vector<float> votes;
  std::vector<int32_t> keys, pages;
  std::vector<Bytes> soon;
  // A score that is under way, and the one whose queries are prepared meanwhile: of which (sequence, head), in which call.
  PageScorer scorers[2];
  int64_t ready = -1, in_call = 0;
  int turn = 0;
};

thread_local Working working;
std::atomic<int64_t> calls{0};

constexpr int64_t kParallelQueries = 128;  // heads whose likeness to their last queries is looked at by several threads

// Pages of the queries' own numbers.
PageShape numbers_of(const AttentionArgs& a) {
  return PageShape(a.dtype == Dtype::f32 ? Store::f32 : Store::bf16, a.shape.page_size, a.shape.k_dim, a.shape.v_dim);
}

// One layer of a step whose sequences choose.
struct Layer {
  const AttentionArgs& a;
  const PageChoice& choice;
  const int64_t layer;
  const std::string& isa;
  const int32_t* const rows;  // the layer's own table
  ChosenTable& table;
  const std::vector<uint8_t>& stale;  // [C] whether scores of an earlier query serve
  const int64_t call;

  int64_t at(int64_t c) const { return layer * choice.count + c; }
  int64_t at(int64_t c, int64_t head) const { return at(c) * a.num_kv_heads + head; }
  bool votes(int64_t c) const { return choice.persist[c] >= 0.0f; }
  float* kept(int64_t c, int64_t head) const { return reinterpret_cast<float*>(choice.scores[at(c, head)]); }

  // Before the pair's row is followed.
  void check(int64_t c, int64_t head) const {
    const int64_t i = at(c, head), full = choice.full[i], pair = a.pair(choice.seqs[c], head);
    if (a.num_queries(choice.seqs[c]) > 1)
      throw std::invalid_argument("a sequence of " + std::to_string(a.num_queries(choice.seqs[c])) + " tokens chooses pages; accepted: 1");
    if (full + 1 > a.max_pages) throw std::out_of_range("more pages chosen than a row has");
    const bool moves = choice.turns[at(c)] != 0;
    if (moves && choice.keep[i] != choice.keep[at(c, 0)]) throw std::invalid_argument("heads of moved keys that read unequally");
    const bool scores_keys = choice.rules[c].kind() == Marks::keys && choice.fresh[i];
    const bool notes = choice.noted[at(c)] && reinterpret_cast<const int64_t*>(choice.noted[at(c)])[head] < full;
    if (notes && full > choice.room[at(c)]) throw std::out_of_range("more pages noted than there is room for");
    if (!moves && !scores_keys && !notes) return;
    check_pages(rows + a.row_of[pair] * a.max_pages, full + moves, a.offset[pair], a.num_pages);
  }

  const char* query(int64_t c, int64_t head) const {
    const int64_t element = a.q_starts[choice.seqs[c]] * a.q_token_stride + head * a.group() * a.q_head_stride;
    return static_cast<const char*>(a.q) + element * size_of(a.dtype);
  }

  // Whether the layer's query is so like the one that last scored that its scores serve; else it is the last one now.
  bool is_alike(int64_t c) const {
    std::vector<float>& room = working.votes;
    room.resize(a.num_q_heads * a.shape.k_dim);
    return PAGODA_BODY(isa, is_alike)(query(c, 0), a.dtype, a.num_q_heads, a.shape.k_dim, a.q_head_stride, choice.alike[c], room.data(),
                                      reinterpret_cast<float*>(choice.query[at(c)]));
  }

  char* marks(int64_t c, int64_t head) const {
    return reinterpret_cast<char*>(choice.marks[at(c)]) + head * choice.room[at(c)] * choice.rules[c].mark_bytes();
  }

  // The head's pages that are full and not noted.
  void note(int64_t c, int64_t head) const {
    const int64_t i = at(c), full = choice.full[at(c, head)];
    int64_t* const noted = choice.noted[i] ? reinterpret_cast<int64_t*>(choice.noted[i]) + head : nullptr;
    if (!noted || *noted >= full) return;
    const int64_t pair = a.pair(choice.seqs[c], head);
    const int32_t* ids = rows + a.row_of[pair] * a.max_pages;
    const int64_t dim = a.shape.k_dim;
    PageMarkArgs m;
    m.rule = choice.rules[c], m.shape = a.shape, m.marks = marks(c, head), m.room = choice.room[i], m.num_given = choice.num_given[i];
    m.given = given(c, head);
    if (choice.weights[i]) m.weights = reinterpret_cast<const float*>(choice.weights[i]) + head * 2 * m.num_given;
    if (choice.metric[i]) m.metric = reinterpret_cast<const float*>(choice.metric[i]) + head * dim * dim;
    m.freq = reinterpret_cast<const float*>(choice.freq[i]);
    for (m.number = *noted; m.number < full; ++m.number) {
      m.page = a.pages + (ids[m.number] + a.offset[pair]) * a.shape.page_bytes;
      mark_page(m, isa);
    }
    *noted = full;
  }

  // Full pages whose scores decide about something: a page that is read anyway is not looked at, where its number serves neither the
  // others' nor a later step.
  struct Judged {
    int64_t first, end;
  };
  Judged judged(int64_t c, int64_t head) const {
    const PageRule& rule = choice.rules[c];
    const int64_t full = choice.full[at(c, head)];
    if (Weigh(rule.weigh) != Weigh::product || kept(c, head) || votes(c)) return {0, full};
    return {rule.first_page != 0, std::max<int64_t>(full - 1, rule.first_page != 0)};
  }

  PageScoreArgs score_args(int64_t c, int64_t head) const {
    const int64_t pair = a.pair(choice.seqs[c], head), i = at(c);
    const Judged pages = judged(c, head);
    PageScoreArgs s;
    s.rule = choice.rules[c], s.heads = a.group(), s.dim = a.shape.k_dim, s.pages = pages.end - pages.first, s.scale = a.scale;
    s.marks = marks(c, head) + pages.first * s.rule.mark_bytes();
    s.room = choice.room[i], s.num_given = choice.num_given[i];
    s.given = given(c, head);
    s.turn = reinterpret_cast<const float*>(choice.turn[i]), s.outliers = choice.outliers[i];
    s.storage = a.pages, s.shape = a.shape;
    s.ids = rows + a.row_of[pair] * a.max_pages, s.offset = a.offset[pair];
    return s;
  }

  int64_t bytes_of_given(int64_t c) const { return given_bytes(choice.rules[c], a.shape.k_dim, choice.num_given[at(c)]); }
  const char* given(int64_t c, int64_t head) const {
    const int64_t all = choice.given[at(c)];
    return all ? reinterpret_cast<const char*>(all) + head * bytes_of_given(c) : nullptr;
  }

  bool scores(int64_t pair) const { return choice.fresh[layer * choice.count * a.num_kv_heads + pair] && !stale[pair / a.num_kv_heads]; }

  // The pair (sequence, head) that is scored next but for `from`, -1: none.
  int64_t scored_from(int64_t pair, int64_t step) const {
    for (; pair >= 0 && pair < choice.count * a.num_kv_heads; pair += step)
      if (scores(pair)) return pair;
    return -1;
  }

  void prepare(PageScorer& scorer, int64_t pair) const {
    const int64_t c = pair / a.num_kv_heads, head = pair % a.num_kv_heads;
    if (choice.rules[c].kind() == Marks::keys) check(c, head);
    scorer.prepare(score_args(c, head), query(c, head), a.dtype, a.q_head_stride, isa);
  }

  // out [full pages] of `pair`, of which those are written that are judged, while what `soon` (or -1) will read is asked for.
  void score(int64_t pair, int64_t soon, float* out) const {
    Working& mine = working;
    if (mine.in_call != call || mine.ready != pair) prepare(mine.scorers[mine.turn], pair);
    PageScorer& scorer = mine.scorers[mine.turn];
    mine.soon.clear(), mine.ready = -1;
    if (soon >= 0) {
      mine.turn ^= 1;
      prepare(mine.scorers[mine.turn], soon);
      mine.scorers[mine.turn].find_lines(mine.soon);
      add_unnoted(soon);
      mine.ready = soon, mine.in_call = call;
      if (const int64_t then = scored_from(2 * soon - pair, soon > pair ? 1 : -1); then >= 0) add_early(then);
    }
    int64_t lines = 0;
    for (const Bytes& part : mine.soon) lines += part.count / 64 + 1;
    scorer.run(out + judged(pair / a.num_kv_heads, pair % a.num_kv_heads).first, {mine.soon.data(), int64_t(mine.soon.size()), lines}, isa);
  }

  // The page that is noted before the pair is scored, and where to.
  void add_unnoted(int64_t pair) const {
    const int64_t c = pair / a.num_kv_heads, head = pair % a.num_kv_heads, i = at(c);
    if (!choice.noted[i]) return;
    const int64_t number = reinterpret_cast<const int64_t*>(choice.noted[i])[head];
    if (number >= choice.full[at(c, head)]) return;
    check(c, head);
    const int64_t of = a.pair(choice.seqs[c], head);
    const int32_t id = rows[a.row_of[of] * a.max_pages + number] + a.offset[of];
    working.soon.push_back({a.pages + id * a.shape.page_bytes + a.shape.k.at, a.shape.page_size * a.shape.k.bytes});
    const PageRule& rule = choice.rules[c];
    if (rule.kind() != Marks::columns) return;
    const int64_t each = rule.per_page / 2;
    for (int64_t column = 0; column < rule.stride; ++column)
      working.soon.push_back({marks(c, head) + (column * choice.room[i] + number) * each, each});
  }

  // What is needed one score earlier than marks: queries, and what they are projected with.
  void add_early(int64_t pair) const {
    const int64_t c = pair / a.num_kv_heads, head = pair % a.num_kv_heads;
    if (a.q_head_stride == a.shape.k_dim) working.soon.push_back({query(c, head), a.group() * a.shape.k_dim * size_of(a.dtype)});
    if (Query(choice.rules[c].query) != Query::project) return;
    working.soon.push_back({given(c, head), bytes_of_given(c)});
  }

  // Asks for what is looked at of the pairs first … end - 1, and for what the first one is prepared with: a thread that begins has little of it.
  void ask_for_pairs(int64_t first, int64_t end) const {
    const auto ask = [](const char* from, int64_t bytes) {
      for (const char* line = from; line < from + bytes; line += 64) ask_for(line);
    };
    const int64_t heads = a.num_kv_heads, from = at(first / heads), sequences = (end - 1) / heads - first / heads + 1;
    const auto of_sequences = [&](const auto* numbers, int64_t each) {
      ask(reinterpret_cast<const char*>(numbers + from * each), sequences * each * int64_t(sizeof *numbers));
    };
    of_sequences(choice.noted, 1), of_sequences(choice.full, heads), of_sequences(choice.fresh, heads), of_sequences(choice.keep, heads);
    of_sequences(choice.turns, 1), of_sequences(choice.marks, 1), of_sequences(choice.room, 1), of_sequences(choice.scores, heads);
    of_sequences(choice.given, 1), of_sequences(choice.num_given, 1), of_sequences(choice.turn, 1), of_sequences(choice.outliers, 1);
    working.soon.clear();
    if (scores(first)) add_early(first);
    for (const Bytes& part : working.soon) ask(part.at, part.count);
    for (int64_t i = from; i < from + sequences; ++i) {
      if (choice.noted[i]) ask_for(reinterpret_cast<const char*>(choice.noted[i]));
      // Where each sequence's marks begin: finding a huge page takes as long as a line, but what asks waits for it, one page after the other.
      if (choice.marks[i]) ask_for(reinterpret_cast<const char*>(choice.marks[i]));
    }
  }

  // Row `item` of the table's new ones: what one head reads by these scores (of all its full pages), or everything.
  void write_row(int64_t c, int64_t head, const float* scores) const {
    Working& mine = working;
    const int64_t full = choice.full[at(c, head)], keep = choice.keep[at(c, head)], pair = a.pair(choice.seqs[c], head);
    const int32_t* ids = rows + a.row_of[pair] * a.max_pages;
    const int32_t apart = a.offset[pair];
    if (keep == full) {
      mine.pages.resize(full);
      std::iota(mine.pages.begin(), mine.pages.end(), 0);
    } else {
      mine.keys.resize(full + kPageScorePad), mine.pages.resize(keep + 1);
      PAGODA_BODY(isa, best_pages)(scores, full, keep, choice.rules[c].first_page, mine.keys.data(), mine.pages.data());
    }
    if (choice.turns[at(c)]) {
      move(c, head, mine.pages);
      return keep_one_slot(pair);
    }
    const int64_t row = a.num_rows + c * a.num_kv_heads + head;
    int32_t* out = table.rows.data() + row * a.max_pages;
    for (int64_t i = 0; i < keep; ++i) out[i] = ids[mine.pages[i]] + apart;
    out[keep] = ids[full] + apart;
    table.row_of[pair] = int32_t(row), table.offset[pair] = 0;
    table.kv_lens[pair] = int32_t((keep - full) * a.shape.page_size + a.kv_lens[pair]);
  }

  // What the sequence reads is elsewhere.
  void keep_one_slot(int64_t pair) const { table.kv_lens[pair] = 1; }

  // The chosen pages side by side: each as many pages further on as are left out behind it.
  void move(int64_t c, int64_t head, const std::vector<int32_t>& chosen) const {
    MovedPages& moved = table.moved;
    const int64_t heads = a.num_kv_heads, mine = moved.of[c], num = (moved.first[mine + 1] - moved.first[mine]) / heads;
    const int64_t full = choice.full[at(c, head)], pair = a.pair(choice.seqs[c], head);
    const int32_t* ids = rows + a.row_of[pair] * a.max_pages;
    const float* turns = reinterpret_cast<const float*>(choice.turns[at(c)]);
    std::vector<float>& room = working.votes;
    room.resize(std::max(a.shape.k_dim, a.shape.v_dim));
    MoveArgs m;
    m.shape = a.shape, m.numbers = numbers_of(a), m.room = room.data();
    const auto body = PAGODA_BODY(isa, move_page);
    const auto page_of = [&](int64_t i) { return i + 1 < num ? chosen[i] : full; };
    const auto place_of = [&](int64_t i) { return a.pages + (ids[page_of(i)] + a.offset[pair]) * a.shape.page_bytes; };
    for (int64_t i = 0; i < num; ++i) {
      m.from = place_of(i), m.soon = place_of(std::min(i + 1, num - 1));
      m.to = moved.pages.data() + (moved.first[mine] + head * num + i) * m.numbers.page_bytes;
      m.turn = turns + ((full - page_of(i)) - (num - 1 - i)) * a.shape.k_dim;
      body(m);
    }
    moved.kv_lens[mine * heads + head] = int32_t((num - 1 - full) * a.shape.page_size + a.kv_lens[pair]);
  }

  void choose(int64_t pair, int64_t soon) const {
    const int64_t c = pair / a.num_kv_heads, head = pair % a.num_kv_heads;
    check(c, head), note(c, head);
    float* out = kept(c, head);
    if (scores(pair)) {
      std::vector<float>& own = working.votes;
      own.resize(choice.full[at(c, head)]);
      if (!out) out = own.data();
      score(pair, soon, out);
    }
    write_row(c, head, out);
  }

  // All heads of a layer read the same: their scores together, and a share of what they were together in the last step.
  void vote(int64_t c, int64_t soon) const {
    const int64_t heads = a.num_kv_heads, full = choice.full[at(c, 0)];
    float* const sums = kept(c, 0);
    for (int64_t head = 0; head < heads; ++head) check(c, head), note(c, head);
    if (choice.fresh[at(c, 0)]) {
      std::vector<float>& own = working.votes;
      own.resize(full);
      for (int64_t i = 0; i < full; ++i) sums[i] *= choice.persist[c];
      for (int64_t head = 0; head < heads; ++head) {
        score(c * heads + head, head + 1 < heads ? c * heads + head + 1 : soon, own.data());
        for (int64_t i = 0; i < full; ++i) sums[i] += own[i];
      }
    }
    for (int64_t head = 0; head < heads; ++head) write_row(c, head, sums);
  }
};

// Room for what sequences read in a layer where their keys move, and the table of it.
void hold_moved(const AttentionArgs& a, const PageChoice& choice, int64_t layer, MovedPages& moved) {
  const int64_t heads = a.num_kv_heads;
  moved.seqs.clear(), moved.of.assign(choice.count, -1), moved.first.assign(1, 0), moved.width = 0;
  for (int64_t c = 0; c < choice.count; ++c) {
    const int64_t at = layer * choice.count + c;
    if (!choice.turns[at]) continue;
    const int64_t num = choice.keep[at * heads] + 1;
    moved.of[c] = int32_t(moved.count()), moved.seqs.push_back(choice.seqs[c]);
    moved.first.push_back(moved.first.back() + heads * num), moved.width = std::max(moved.width, num);
  }
  const int64_t pairs = moved.count() * heads;
  moved.pages.resize(moved.first.back() * numbers_of(a).page_bytes);
  moved.rows.assign(pairs * moved.width, 0), moved.row_of.resize(pairs), moved.offset.assign(pairs, 0), moved.kv_lens.resize(pairs);
  std::iota(moved.row_of.begin(), moved.row_of.end(), 0);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t first = moved.first[pair / heads], num = (moved.first[pair / heads + 1] - first) / heads;
    int32_t* row = moved.rows.data() + pair * moved.width;
    std::iota(row, row + num, int32_t(first + pair % heads * num));
  }
}

}  // namespace

void choose_pages(AttentionArgs& a, const PageChoice& choice, int64_t layer, int num_threads, const std::string& isa,
                  ChosenTable& table) {
  const int64_t heads = a.num_kv_heads, pairs = a.num_seqs * heads, width = a.max_pages;
  hold_moved(a, choice, layer, table.moved);
  table.rows.resize((a.num_rows + choice.count * heads) * width);
  if (choice.count < a.num_seqs || table.moved.count() > 0) std::copy_n(a.rows, a.num_rows * width, table.rows.begin());  // else nobody reads them
  table.row_of.assign(a.row_of, a.row_of + pairs);
  table.offset.assign(a.offset, a.offset + pairs);
  table.kv_lens.assign(a.kv_lens, a.kv_lens + pairs);
  std::vector<uint8_t>& stale = table.stale;
  stale.assign(choice.count, 0);
  const Layer l{a, choice, layer, isa, a.rows, table, stale, ++calls};
  bool votes = false, keeps_queries = false;
  for (int64_t c = 0; c < choice.count; ++c) votes |= l.votes(c), keeps_queries |= choice.query[l.at(c)] != 0;
  if (keeps_queries)
    parallel_for(choice.count, choice.count * a.num_q_heads < kParallelQueries ? 1 : num_threads, [&](int64_t c) {
      stale[c] = choice.query[l.at(c)] && choice.fresh[l.at(c, 0)] && l.is_alike(c);
    });
  // Neighbours for each thread, which knows what it will score next. Heads that vote are one thread's.
  const int64_t together = votes ? heads : 1, units = choice.count * heads / together;
  const auto unit_body = [&](int64_t unit, int64_t soon) {
    const int64_t after = soon < 0 || units <= num_threads ? -1 : l.scored_from(soon * together, soon > unit ? 1 : -1);
    if (l.votes(unit * together / heads)) return l.vote(unit, after);
    for (int64_t pair = unit * together; pair < (unit + 1) * together; ++pair) {
      const int64_t next = pair + 1 < (unit + 1) * together ? l.scored_from(pair + 1, 1) : after;
      l.choose(pair, next);
    }
  };
  const int64_t shares = std::min<int64_t>({units, int64_t{num_threads}, kMostShares});
  std::vector<int32_t>& starts = table.starts;
  starts.resize(shares + 1);
  for (int64_t i = 0; i <= shares; ++i) starts[i] = int32_t(i * units / std::max<int64_t>(1, shares));
  table.stretches.reset(starts);
  parallel_for(shares, num_threads, [&](int64_t item) {
    const int64_t thread = parallel_seat(int(item));
    l.ask_for_pairs(starts[thread] * together, starts[thread + 1] * together);
    table.stretches.walk(thread, [&](int64_t unit, int64_t soon, bool) { unit_body(unit, soon); });
  });
  a.rows = table.rows.data(), a.num_rows += choice.count * heads, a.row_of = table.row_of.data();
  a.offset = table.offset.data(), a.kv_lens = table.kv_lens.data();
}

void attend_moved(const AttentionArgs& args, MovedPages& moved, int num_threads, const std::string& isa) {
  const int64_t q_bytes = args.shape.k_dim * size_of(args.dtype), out_bytes = args.num_q_heads * args.v_dim * size_of(args.dtype);
  moved.q_starts.assign(1, 0);
  moved.q.resize(moved.count() * args.num_q_heads * q_bytes), moved.out.resize(moved.count() * out_bytes);
  for (const int32_t seq : moved.seqs) {  // of one token each, for which perhaps nobody asks
    const int64_t token = args.q_starts[seq], n = moved.q_starts.back();
    moved.q_starts.push_back(int32_t(n + args.num_queries(seq)));
    for (int64_t head = 0; head < args.num_q_heads && args.num_queries(seq) > 0; ++head)
      std::memcpy(moved.q.data() + (n * args.num_q_heads + head) * q_bytes,
                  static_cast<const char*>(args.q) + (token * args.q_token_stride + head * args.q_head_stride) * size_of(args.dtype), q_bytes);
  }
  if (moved.q_starts.back() == 0) return;
  AttentionArgs a = args;
  a.q = moved.q.data(), a.q_token_stride = args.num_q_heads * args.shape.k_dim, a.q_head_stride = args.shape.k_dim, a.out = moved.out.data();
  a.shape = numbers_of(args), a.pages = moved.pages.data(), a.num_pages = moved.first.back();
  a.rows = moved.rows.data(), a.num_rows = int64_t(moved.row_of.size()), a.max_pages = moved.width;
  a.row_of = moved.row_of.data(), a.offset = moved.offset.data(), a.kv_lens = moved.kv_lens.data();
  a.q_starts = moved.q_starts.data(), a.chunk_starts = nullptr, a.are_wide = nullptr, a.sum_targets = nullptr, a.weights = nullptr;
  a.share_prefixes = false;
  a.num_seqs = moved.count(), a.num_tokens = moved.q_starts.back();
  paged_attention(a, num_threads, isa);
  for (int64_t m = 0; m < moved.count(); ++m)
    if (moved.q_starts[m + 1] > moved.q_starts[m])
      std::memcpy(static_cast<char*>(args.out) + args.q_starts[moved.seqs[m]] * out_bytes, moved.out.data() + moved.q_starts[m] * out_bytes, out_bytes);
}

}  // namespace pagoda
