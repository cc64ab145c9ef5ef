// Cuts a ragged batch into items that threads take one by one.
//
// Where a row's slots are cut depends on its own length alone (kPartSlots). How many parts make an item depends on the batch and
// the threads: equal amounts of work, so that all finish together (lean-attention, arXiv:2405.10480). Parts that several sequences
// read from the same pages become one item with the rows of all of them (relay-attention, arXiv:2402.14808; chunk-attention,
// arXiv:2402.15220):
//
//   sequence 0   │ part 0 │ part 1 │ part 2' │ rest │        items   (0,1,2: parts 0, 1)   (0,1: part 2')   (0: rest) (1: rest)
//   sequence 1   │ part 0 │ part 1 │ part 2' │ rest │                (2: part 2", rest)
//   sequence 2   │ part 0 │ part 1 │ part 2" │ rest │
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <tuple>

#include "attention.hpp"
#include "caches.hpp"

namespace pagoda {

namespace {

constexpr int64_t kMaxItemParts = kSumParts;
constexpr int64_t kManyTiles = 16;       // of a chunk, from which on they are large ones
constexpr int64_t kRowBytes = 2 << 10;  // of cache for a row: its query, sums and mask take a quarter (64 columns)
constexpr int64_t kRowsTogether = 126;   // whole groups of 1, 2, 3, 6, 7, 9 query heads
constexpr int64_t kMostRows = 16 * kRowsTogether;  // where packing a slot is a sixtieth of a tile's products
constexpr int64_t kItemsPerThread = 2;  // of its share, and more towards the end. With eight, 4096 slots of int8 took a twelfth more.
constexpr int64_t kWidestSpan = 64;     // slots beside which a maximum moves at once (kSpan), where blocks begin anywhere

int64_t cost(int64_t slots, int64_t rows) { return slots * (32 + rows); }  // packing a slot costs as much as 32 rows' products

// Queries of a sequence that are cut into parts, as one kv-head sees them.
struct Narrow {
  int32_t seq, q_begin, q_end;
  int64_t begin, end;      // slots that any of its queries sees
  int64_t rows, partials;  // partials: where its parts lie, -1 when it is a single one
  int32_t merge;           // of those partials
  int64_t done;            // parts before this one are in items already

  int64_t parts() const { return (end + kPartSlots - 1) / kPartSlots - begin / kPartSlots; }
  int64_t full_parts() const { return end / kPartSlots; }
};

// Parts from..to of one kv-head for `count` members, who read them from the same pages.
struct Job {
  int32_t head;
  size_t first, count;  // in `members`
  int64_t from, to;
  int64_t slot_cost;  // of all its items over one slot
};

// What making a plan takes beside the plan. A thread keeps the memory: a plan is made for every step, of the same size.
struct Lists {
  std::vector<Narrow> narrow, members;
  std::vector<Job> jobs, beside;
};

thread_local Lists lists;

class Planner {
 public:
  Planner(const AttentionArgs& args, int num_threads, AttentionPlan& to) : a(args), threads(num_threads), plan(to) {}

  void run() {
    plan.clear(), members.clear(), jobs.clear();
    for (int32_t head = 0; head < a.num_kv_heads; ++head) {
      narrow.clear();
      for (int32_t seq = 0; seq < a.num_seqs; ++seq)
        if (a.num_queries(seq) > 0) add(seq, head);
      if (a.share_prefixes && a.window == 0 && narrow.size() > 1) share(head);
      for (const Narrow& n : narrow) {
        const int64_t to = n.begin / kPartSlots + n.parts();
        if (n.done < to || n.parts() == 0) note(&n, 1, head, n.done, to);
      }
    }
    const bool wide = !plan.items.empty();
    cut_all();
    while (thread <= threads) begin_stretch();
    if (!wide) order_shares();
    if (wide) plan.stretches.clear();
    if (wide && threads > 1)  // the longest first: what comes last is short
      std::stable_sort(plan.items.begin(), plan.items.end(),
                       [&](const auto& x, const auto& y) { return cost_of(x) > cost_of(y); });
  }

 private:
  // Every table entry that the bodies will follow, checked once: they read memory unchecked.
  void check(int64_t seq, int64_t head) {
    const int64_t pair = a.pair(seq, head), page_size = a.shape.page_size;
    const int64_t row = a.row_of[pair], blocks = (a.kv_lens[pair] + page_size - 1) / page_size;
    if (row < 0 || row >= a.num_rows) throw std::out_of_range("row " + std::to_string(row) + " of " + std::to_string(a.num_rows));
    if (a.kv_lens[pair] < 0 || blocks > a.max_pages)
      throw std::out_of_range("length " + std::to_string(a.kv_lens[pair]) + " in a row of " + std::to_string(a.max_pages) + " pages");
    if (a.summed(seq)) {
      const int64_t room = a.sum_targets[seq].room();
      if (a.kv_lens[pair] > room)
        throw std::out_of_range("length " + std::to_string(a.kv_lens[pair]) + " of " + std::to_string(room) + " probability sums");
    }
    if (a.coded) {
      const RawSlots& raw = a.coded->raw[seq];
      if (raw.start < 0 || raw.start % page_size != 0 || a.kv_lens[pair] > raw.start + raw.room)
        throw std::out_of_range("length " + std::to_string(a.kv_lens[pair]) + " of " + std::to_string(raw.start) +
                                " encoded slots and room for " + std::to_string(raw.room) + " more");
    }
    if (blocks == 0) return;
    const int32_t* ids = a.rows + row * a.max_pages;
    const auto [low, high] = std::minmax_element(ids, ids + blocks);
    const int64_t first = int64_t{*low} + a.offset[pair], last = int64_t{*high} + a.offset[pair];
    if (first < 0 || last >= a.num_pages)
      throw std::out_of_range("page " + std::to_string(first < 0 ? first : last) + " of " + std::to_string(a.num_pages));
    plan.first_page = std::min(plan.first_page, first), plan.last_page = std::max(plan.last_page, last);
  }

  void add(int32_t seq, int32_t head) {
    check(seq, head);
    const int64_t n = a.num_queries(seq), length = a.kv_lens[a.pair(seq, head)];
    if (a.summed(seq) && !a.at_once(seq))  // others are as soon as a row is done
      for (int64_t at = 0; at < length; at += kPartSlots)
        plan.sums.push_back({seq, head, int32_t(at), int32_t(std::min(length, at + kPartSlots))});
    if (a.wide(seq)) return add_wide(seq, head);
    for (int64_t q = 0; q < n; q += a.narrow_queries()) add_narrow(seq, head, q, std::min(n, q + a.narrow_queries()), length - n);
  }

  void add_narrow(int32_t seq, int32_t head, int64_t q, int64_t q_end, int64_t before) {
    Narrow own{seq, int32_t(q), int32_t(q_end), first_slot(before + q), before + q_end, (q_end - q) * a.group(), -1, -1, 0};
    own.done = own.begin / kPartSlots;
    if (own.parts() > 1) {
      own.partials = plan.num_partial_floats, own.merge = int32_t(plan.merges.size());
      plan.num_partial_floats += parts_of(a, nullptr, q_end - q, own.parts()).floats();
      plan.merges.push_back({seq, int32_t(q), int32_t(q_end), head, own.partials, own.parts()});
    }
    narrow.push_back(own);
  }

  // The first slot that a query whose own slot is `own` sees, or a few before it. A slot's lane does not depend on which query of a
  // tile is the first, so its bits do not depend on where chunks are cut into tiles.
  int64_t first_slot(int64_t own) const {
    return a.window ? std::max<int64_t>(0, own - a.window + 1) / kWidestSpan * kWidestSpan : 0;
  }

  void add_wide(int32_t seq, int32_t head) {
    const int64_t n = a.num_queries(seq), before = a.kv_lens[a.pair(seq, head)] - n;
    const int64_t wanted = n * a.num_q_heads >= kManyTiles * tiles.rows ? tiles.rows : tiles.rows / 2;
    const int64_t tile = std::max<int64_t>(1, tiles.rows_of(wanted, a.shape.k_dim + a.v_dim) / a.group());
    for (int64_t q = 0; q < n; q += tile) {
      const int64_t q_end = std::min(n, q + tile), end = std::max<int64_t>(0, before + q_end);
      const int64_t begin = std::min(end, first_slot(before + q));
      plan.spans.push_back({seq, int32_t(q), int32_t(q_end), -1, -1, 0, 1});
      push(head, 1, begin, end);
      plan.work += cost(end - begin, (q_end - q) * a.group());
    }
  }

  void push(int32_t head, int64_t num_spans, int64_t begin, int64_t end) {
    const auto last = int32_t(plan.spans.size());
    plan.items.push_back({head, int32_t(last - num_spans), last, int32_t(begin), int32_t(end)});
  }

  int64_t cost_of(const AttentionItem& item) const {
    int64_t rows = 0;
    for (int32_t s = item.span_begin; s < item.span_end; ++s) rows += (plan.spans[s].q_end - plan.spans[s].q_begin) * a.group();
    return cost(item.slot_end - item.slot_begin, rows);
  }

  void note(const Narrow* first, int64_t count, int32_t head, int64_t from, int64_t to) {
    Job job{head, members.size(), size_t(count), from, to, 0};
    each_tile(first, first + count, [&](const Narrow*, const Narrow*, int64_t rows) { job.slot_cost += cost(1, rows); });
    members.insert(members.end(), first, first + count);
    jobs.push_back(job);
    const int64_t all = cost_of(job, from, to);
    total += all, plan.work += all;
  }

  // Calls act(first, last + 1, rows) for as many members at a time as one item takes.
  template <typename Act>
  void each_tile(const Narrow* m, const Narrow* end, Act act) const {
    const int64_t most = std::max<int64_t>(m->rows, tiles.rows_of(tiles.rows / 2, a.shape.k_dim + a.v_dim));
    while (m < end) {
      const Narrow* const first = m;
      int64_t rows = 0;
      for (; m < end && rows + m->rows <= most; ++m) rows += m->rows;
      act(first, m, rows);
    }
  }

  int64_t cost_of(const Job& job, int64_t from, int64_t to) const {
    const Narrow& one = members[job.first];
    return job.slot_cost * (std::min(one.end, to * kPartSlots) - std::max(one.begin, from * kPartSlots));
  }

  // Where nobody shares anything, all kv-heads of a sequence side by side: their pages of the same slots lie behind one another, so one walk
  // through tables finds several, and the stream of lines that the cache goes ahead of does not end with a page.
  void cut_all() {
    const size_t heads = size_t(a.num_kv_heads), each = jobs.size() / heads;
    const auto job = [&](size_t number, size_t head) -> const Job& { return jobs[head * each + number]; };
    const auto alike = [&](size_t number) {
      for (size_t head = 0; head < heads; ++head) {
        const Job &x = job(number, 0), &y = job(number, head);
        if (y.count != 1 || y.head != int32_t(head) || members[x.first].seq != members[y.first].seq || x.from != y.from || x.to != y.to) return false;
      }
      return true;
    };
    bool all = each * heads == jobs.size();
    for (size_t number = 0; all && number < each; ++number) all = alike(number);
    beside.clear();
    if (!all) {
      for (const Job& one : jobs) beside.assign(1, one), cut(beside);
      return;
    }
    for (size_t number = 0; number < each; ++number, beside.clear()) {
      for (size_t head = 0; head < heads; ++head) beside.push_back(job(number, head));
      cut(beside);
    }
  }

  // Where several sequences share something: a thread's common parts first, then what each sequence has by itself, the thread's kv-heads side by
  // side (as in cut_all(), and small items last). 32 sequences on 2048 shared slots and 104 of their own, behind weights that drive everything
  // out of the caches, one core: 2.8 us for a sequence's own slots of one kv-head, 2.55 so.
  void order_shares() {
    const auto common = [](const AttentionItem& item) { return item.span_end - item.span_begin > 1; };
    const auto less = [&](const AttentionItem& x, const AttentionItem& y) {
      if (common(x) != common(y)) return common(x);
      if (common(x)) return x.span_begin < y.span_begin;  // in their order
      const int32_t first = plan.spans[x.span_begin].seq, second = plan.spans[y.span_begin].seq;
      return std::tie(first, x.slot_begin, x.head) < std::tie(second, y.slot_begin, y.head);
    };
    if (std::none_of(plan.items.begin(), plan.items.end(), common)) return;
    for (size_t i = 0; i + 1 < plan.stretches.size(); ++i)
      std::sort(plan.items.begin() + plan.stretches[i], plan.items.begin() + plan.stretches[i + 1], less);
  }

  // Items of a share's kItemsPerThread-th, of jobs over the same parts in turn.
  void cut(const std::vector<Job>& together) {
    const Job& one = together[0];
    const int64_t part = kPartSlots * one.slot_cost;
    const int64_t usual = std::clamp<int64_t>(total / (threads * kItemsPerThread * part), 1, kMaxItemParts);
    for (int64_t at = one.from, stop = at; at < one.to || one.from == one.to; at = stop) {
      for (const Job& job : together) {
        while (plan.stretches.empty() || (thread < threads && 2 * (share_end() - done) < part)) begin_stretch();
        if (&job == &one) stop = whole_sums(one, at, std::min(one.to, at + parts_at(one, at, part * int64_t(together.size()), usual)));
        const Narrow *const begin = members.data() + job.first, *const end = begin + job.count;
        each_tile(begin, end, [&](const Narrow* first, const Narrow* beyond, int64_t) {
          for (const Narrow* m = first; m < beyond; ++m) plan.spans.push_back(span_of(*m, at));
          push(job.head, beyond - first, std::max(first->begin, at * kPartSlots), std::min(first->end, stop * kPartSlots));
        });
        done += cost_of(job, at, stop);
      }
      if (one.from == one.to) break;  // no slots at all: the item that writes zeros
    }
  }

  // How many parts the next item of a job takes, `part` the work of one. Where many rows share them their queries are prepared and their sums
  // written for each item, which costs as much as a part: where the share ends with other jobs (the members' own slots), it is they
  // that let all threads end together.
  int64_t parts_at(const Job& job, int64_t at, int64_t part, int64_t usual) const {
    const int64_t left = (share_end() - done) / part;
    if (job.count > 1) return std::clamp<int64_t>(left > job.to - at ? left : left - 1, 1, kMaxItemParts);
    return threads > 1 ? std::clamp<int64_t>(left, 1, usual) : usual;
  }

  // Parts from `at` to `stop`, less those beyond the last sum of kSumParts that ends among them.
  int64_t whole_sums(const Job& job, int64_t at, int64_t stop) const {
    const int64_t first = members[job.first].begin / kPartSlots, whole = (stop - first) / kSumParts * kSumParts + first;
    return stop < job.to && whole > at ? whole : stop;
  }

  int64_t share_end() const { return total * thread / threads; }  // of the threads before `thread`
  void begin_stretch() { plan.stretches.push_back(int32_t(plan.items.size())), ++thread; }

  Span span_of(const Narrow& n, int64_t part) const {
    return {n.seq, n.q_begin, n.q_end, n.partials, n.merge, int32_t(part - n.begin / kPartSlots), int32_t(n.parts())};
  }

  // Page ids of one part, in the sequence's row.
  const int32_t* ids_of(const Narrow& n, int32_t head, int64_t part, int64_t* count) const {
    const int64_t page = a.shape.page_size, block = part * kPartSlots / page;
    *count = ((part + 1) * kPartSlots + page - 1) / page - block;
    return a.rows + a.row_of[a.pair(n.seq, head)] * a.max_pages + block;
  }

  int compare(const Narrow& x, const Narrow& y, int32_t head, int64_t part) const {
    if (a.shape.store == Store::int8 && a.summed(x.seq) != a.summed(y.seq)) return a.summed(x.seq) ? 1 : -1;  // bytes, numbers
    int64_t count;
    const int32_t *mine = ids_of(x, head, part, &count), *theirs = ids_of(y, head, part, &count);
    const int32_t apart = a.offset[a.pair(x.seq, head)] - a.offset[a.pair(y.seq, head)];
    if (apart == 0 && std::memcmp(mine, theirs, 4 * count) == 0) return 0;
    for (int64_t i = 0; i < count; ++i)
      if (mine[i] + apart != theirs[i]) return mine[i] + apart < theirs[i] ? -1 : 1;
    return 0;
  }

  void share(int32_t head) { share(narrow.data(), int64_t(narrow.size()), head, 0, 0); }

  // `group` (a range of `narrow`, reordered here) share the parts from..part; what else do they share?
  void share(Narrow* group, int64_t count, int32_t head, int64_t from, int64_t part) {
    const auto first_of = [](const Narrow& x, const Narrow& y) { return std::tie(x.seq, x.q_begin) < std::tie(y.seq, y.q_begin); };
    const auto less = [&](const Narrow& x, const Narrow& y) {
      const int order = compare(x, y, head, part);
      return order != 0 ? order < 0 : first_of(x, y);  // stable: std::stable_sort and _partition fetch memory
    };
    // What is raw lies with each sequence, whose table may name the same pages as another's; so do weights of slots.
    const auto encoded = [&](const Narrow& n) { return !a.coded || (part + 1) * kPartSlots <= a.coded->raw[n.seq].start; };
    const auto whole = [&](const Narrow& n) { return part < n.full_parts() && n.partials >= 0 && encoded(n) && !a.weighted(n.seq); };
    if (part > from && std::all_of(group, group + count, whole) &&
        std::all_of(group + 1, group + count, [&](const Narrow& n) { return compare(*group, n, head, part) == 0; }))
      return share(group, count, head, from, part + 1);
    if (part > from) {
      note(group, count, head, from, part);
      for (int64_t m = 0; m < count; ++m) group[m].done = part;
    }
    Narrow* last = std::partition(group, group + count, whole);
    std::sort(group, last, less);
    std::sort(last, group + count, first_of);
    for (Narrow* first = group; first < last;) {
      Narrow* next = first + 1;
      while (next < last && compare(*first, *next, head, part) == 0) ++next;
      if (next - first > 1) share(first, next - first, head, part, part + 1);
      first = next;
    }
  }

  const AttentionArgs& a;
  const int threads;
  const AttentionTiles tiles{caches().second};
  int64_t total = 0, done = 0;  // work of all jobs, and of those that are items already
  int thread = 0;               // the items go to thread - 1 now
  std::vector<Narrow>&narrow = lists.narrow, &members = lists.members;
  std::vector<Job>&jobs = lists.jobs, &beside = lists.beside;
  AttentionPlan& plan;
};

}  // namespace

AttentionTiles::AttentionTiles(int64_t cache_bytes)
    : rows(std::clamp(cache_bytes / kRowBytes / kRowsTogether, int64_t{1}, kMostRows / kRowsTogether) * kRowsTogether),
      words(cache_bytes / 4 * 3 / 8) {}

int64_t AttentionTiles::rows_of(int64_t wanted, int64_t columns) const { return std::min(wanted, words / columns); }

void plan_attention(const AttentionArgs& args, int num_threads, AttentionPlan& plan) { Planner(args, num_threads, plan).run(); }

}  // namespace pagoda
