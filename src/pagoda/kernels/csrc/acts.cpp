#include "acts.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "fetch.hpp"
#include "hashes.hpp"
#include "pages.hpp"

namespace pagoda {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Ground {
  char* pages;
  int64_t num_pages;
  const PageShape& shape;
  int32_t* refs;

  int64_t pages_for(int64_t slots) const { return (slots + shape.page_size - 1) / shape.page_size; }
};

void check(const Ground& ground, const Act& act) {
  if (!act.slides && act.run > 1) throw std::invalid_argument("slots ranked by head in rows that cover " + std::to_string(act.run));
  for (int64_t row = 0; row < act.rows; ++row) {
    if (act.counts[row] > act.width || ground.pages_for(act.lens[row]) > act.counts[row])
      throw std::out_of_range(std::to_string(act.lens[row]) + " slots in " + std::to_string(act.counts[row]) + " runs of a row");
    for (int64_t column = 0; column < act.counts[row]; ++column) {
      const int64_t base = act.bases[row * act.width + column];
      if (base < 0 || base + act.run > ground.num_pages)
        throw std::out_of_range("page " + std::to_string(base) + " of " + std::to_string(ground.num_pages));
      for (int64_t page = base; page < base + act.run; ++page)
        if (ground.refs[page] != 1)
          throw std::logic_error("page " + std::to_string(page) + " of a sequence's own has " + std::to_string(ground.refs[page]) + " owners");
    }
  }
  if (act.slides && (act.rows != 1 || act.sinks < 0 || act.from <= act.sinks || act.from > act.lens[0]))
    throw std::out_of_range("slots from " + std::to_string(act.from) + " of " + std::to_string(act.lens[0]));
}

// Rows become as short as `lens` says; runs behind that are given up.
void cut(const Ground& ground, Act& act) {
  act.room = std::numeric_limits<int64_t>::max();
  for (int64_t row = 0; row < act.rows; ++row) {
    const int64_t left = ground.pages_for(act.lens[row]);
    act.room = std::min(act.room, left * ground.shape.page_size - act.lens[row]);
    for (int64_t column = left; column < act.counts[row]; ++column) {
      int32_t& base = act.bases[row * act.width + column];
      act.freed.push_back(base);
      std::fill_n(ground.refs + base, act.run, 0);
      base = 0;
    }
    act.counts[row] = int32_t(left);
  }
}

// The first slots stay and the newest. Where whole pages go, those behind them are linked instead of written (kv/compaction.py).
void slide(const Ground& ground, Act& act) {
  const int64_t size = ground.shape.page_size, gap = act.from - act.sinks, left = act.lens[0] - gap;
  const int64_t linked = ground.pages_for(act.sinks);
  const bool links = gap % size == 0 && linked * size < left;
  const int64_t end = links ? std::min(left, linked * size) : left;
  for (int64_t slot = act.sinks; slot < end;) {
    const int64_t source = slot + gap, to = slot % size, from = source % size;
    const int64_t count = std::min({size - to, size - from, end - slot});
    char* const target_run = ground.pages + act.bases[slot / size] * ground.shape.page_bytes;
    const char* const source_run = ground.pages + act.bases[source / size] * ground.shape.page_bytes;
    for (int64_t page = 0; page < act.run; ++page)
      for (const Plane& plane : {ground.shape.k, ground.shape.v, ground.shape.k_scales, ground.shape.v_scales}) {
        const int64_t at = page * ground.shape.page_bytes + plane.at;
        std::memmove(target_run + at + to * plane.bytes, source_run + at + from * plane.bytes, count * plane.bytes);
      }
    slot += count;
  }
  if (links) std::rotate(act.bases + linked, act.bases + linked + gap / size, act.bases + act.counts[0]);
  act.dropped = gap * act.run;
  act.lens[0] = int32_t(left);
}

// float[slots] of a row, 0 behind what is remembered.
void read_row(const Remembered& of, int64_t row, int64_t slots, float* to) {
  const int64_t held = std::min(slots, of.width);
  std::copy_n(of.values + row * of.width, held, to);
  std::fill(to + held, to + slots, 0.0f);
}

// scores [rows][slots] of what is remembered of each slot.
void score(const Act& act, int64_t slots, std::vector<float>& scores) {
  scores.resize(act.rows * slots);
  const bool alone = act.by == By::mass || act.by == By::received;
  std::vector<float> second(alone ? 0 : slots);
  for (int64_t row = 0; row < act.rows; ++row) {
    float* const to = scores.data() + row * slots;
    read_row(act.first, row, slots, to);
    if (alone) continue;
    read_row(act.second, row, slots, second.data());
    if (act.by == By::wanted) {
      for (int64_t i = 0; i < slots; ++i) to[i] = second[i] == 0.0f ? 0.0f : to[i];
    } else {
      const float whole = (slots ? *std::max_element(to, to + slots) : 0.0f) + 1.0f;
      for (int64_t i = 0; i < slots; ++i) to[i] = second[i] + to[i] / whole;
    }
  }
}

// Of the first `stem` slots of each row the best become infinitely good and the others infinitely bad.
void choose_stem(const Act& act, float* scores, int64_t slots) {
  const std::vector<int64_t> lens(act.rows, act.stem), budgets(act.rows, act.stem_budget);
  std::vector<uint8_t> keep(act.rows * act.stem);
  std::vector<float> pooled(slots);
  for (int64_t row = 0; row < act.rows; ++row) {
    float* const mine = scores + row * slots;
    std::copy_n(pool_mean(mine, slots, act.pool, pooled), slots, mine);
  }
  KeepBestArgs best;
  best.scores = scores, best.stride = slots, best.lens = lens.data(), best.budgets = budgets.data();
  best.rows = act.rows, best.slots = act.stem, best.least = -kInfinity, best.keep = keep.data();
  keep_best(best);
  for (int64_t row = 0; row < act.rows; ++row)
    for (int64_t i = 0; i < act.stem; ++i) scores[row * slots + i] = keep[row * act.stem + i] ? kInfinity : -kInfinity;
}

void score_hashes(const Ground& ground, const Act& act, const std::vector<int64_t>& lens, int64_t slots, std::vector<float>& scores) {
  std::vector<int64_t> first(lens);
  for (int64_t& one : first) one -= act.unhashed;
  ReadArgs read;
  read.pages = ground.pages, read.num_pages = ground.num_pages, read.shape = ground.shape;
  read.rows = act.bases, read.count = act.rows, read.width = act.width, read.first = first.data(), read.slots = act.unhashed;
  hash_slots(read, act.planes, act.bits, act.first.values, act.first.width, act.first.width, "");
  scores.resize(act.rows * slots);
  if (slots > act.first.width) throw std::out_of_range("hashes of " + std::to_string(act.first.width) + " slots");
  hash_scores({act.first.values, act.first.width, act.rows, slots, nullptr, act.group, act.bits, scores.data()}, act.queries,
              ground.shape.k_dim, act.planes, "");
}

// The slots that go on in one, as `weigh_slots` sums them up.
void blend(const Ground& ground, const Act& act) {
  const int64_t n = act.num_blended, k_dim = ground.shape.k_dim, v_dim = ground.shape.v_dim, size = ground.shape.page_size;
  std::vector<int32_t> bases(n * act.width), ids(n), at(n, int32_t(act.carrier % size));
  std::vector<int64_t> first(n, act.carrier);
  std::vector<float> weights(n * act.carried, act.other_weight), k(n * k_dim), v(n * v_dim);
  for (int64_t i = 0; i < n; ++i) {
    const int32_t* const row = act.bases + act.blended[i] * act.width;
    std::copy_n(row, act.width, bases.data() + i * act.width);
    ids[i] = row[act.carrier / size];
    weights[i * act.carried] = act.weight;
  }
  ReadArgs read;
  read.pages = ground.pages, read.num_pages = ground.num_pages, read.shape = ground.shape;
  read.rows = bases.data(), read.count = n, read.width = act.width, read.first = first.data(), read.slots = act.carried;
  read.k = k.data(), read.v = v_dim ? v.data() : nullptr;
  weigh_slots(read, weights.data());
  WriteArgs write;
  write.pages = ground.pages, write.num_pages = ground.num_pages, write.shape = ground.shape, write.dtype = Dtype::f32;
  write.k = {reinterpret_cast<const char*>(k.data()), k_dim * 4, 0};
  write.v = {reinterpret_cast<const char*>(v.data()), v_dim * 4, 0};
  write.page_ids = ids.data(), write.slots = at.data(), write.tokens = n, write.heads = 1;
  kv_write(write, 1, "");
}

void rank(const Ground& ground, Act& act, int num_threads) {
  const std::vector<int64_t> lens(act.lens, act.lens + act.rows);
  const int64_t slots = *std::max_element(lens.begin(), lens.end());
  if (act.num_blended) blend(ground, act);
  EvictArgs evicting;
  evicting.pages = ground.pages, evicting.num_pages = ground.num_pages, evicting.shape = ground.shape;
  evicting.rows = act.bases, evicting.width = act.width, evicting.values = act.moved, evicting.lens = act.lens;
  KeepBestArgs& choice = evicting.choice;
  std::vector<float> scores;
  const std::vector<int64_t> budgets(act.budgets ? 0 : act.rows, act.budget);
  choice.lens = lens.data(), choice.budgets = act.budgets ? act.budgets : budgets.data(), choice.rows = act.rows, choice.slots = slots;
  choice.sinks = act.sinks, choice.recent = act.recent, choice.least = act.least, choice.pool = act.pool, choice.stride = slots;
  if (act.by == By::hashes) {
    score_hashes(ground, act, lens, slots, scores);
  } else if (act.by != By::age) {
    score(act, slots, scores);
    if (act.stem) choose_stem(act, scores.data(), slots), choice.pool = 1;
  }
  if (!scores.empty()) choice.scores = scores.data();
  evict(evicting, num_threads);
  for (int64_t row = 0; row < act.rows; ++row) act.dropped += lens[row] - act.lens[row];
  for (const Remembered& one : act.cleared) std::fill_n(one.values, act.rows * one.width, 0.0f);
}

}  // namespace

void run_acts(char* pages, int64_t num_pages, const PageShape& shape, int32_t* refs, const std::vector<Act*>& acts, int num_threads) {
  const Ground ground{pages, num_pages, shape, refs};
  for (const Act* act : acts) check(ground, *act);
  for (Act* act : acts) {
    if (act->slides) slide(ground, *act);
    else rank(ground, *act, num_threads);
    cut(ground, *act);
  }
}

}  // namespace pagoda
