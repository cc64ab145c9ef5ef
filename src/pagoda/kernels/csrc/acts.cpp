#include "acts.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>

#include "act_choice.hpp"
#include "fetch.hpp"
#include "pages.hpp"

namespace pagoda {

namespace {

struct Ground {
  char* pages;
  int64_t num_pages;
  const PageShape& shape;
  int32_t* refs;

  int64_t pages_for(int64_t slots) const { return (slots + shape.page_size - 1) / shape.page_size; }
};

bool shared(const int32_t* refs, int64_t base, int64_t run) {
  return std::any_of(refs + base, refs + base + run, [](int32_t owners) { return owners > 1; });
}

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
        if (ground.refs[page] < 1) throw std::logic_error("page " + std::to_string(page) + " of a sequence's has no owner");
    }
  }
  if (act.slides && (act.rows != 1 || act.sinks < 0 || act.from <= act.sinks || act.from > act.lens[0]))
    throw std::out_of_range("slots from " + std::to_string(act.from) + " of " + std::to_string(act.lens[0]));
}

void widen(Columns& columns, int64_t first, int64_t end) {
  columns = columns.first == columns.end ? Columns{first, end} : Columns{std::min(columns.first, first), std::max(columns.end, end)};
}

// What each row's slots are written to, and how many go.
void judge(const Ground& ground, Act& act, int num_threads) {
  check(ground, act);
  const int64_t size = ground.shape.page_size;
  act.written.assign(act.rows, {});
  if (act.slides) {
    const int64_t gap = act.from - act.sinks, left = act.lens[0] - gap, linked = ground.pages_for(act.sinks);
    // Where whole pages go, those behind them are linked instead of written (kv/compaction.py).
    act.links = gap % size == 0 && linked * size < left;
    if (act.sinks < left) act.written[0] = {act.sinks / size, act.links ? linked : ground.pages_for(left)};
    act.dropped = gap * act.run;
    return;
  }
  choose(ground.pages, ground.num_pages, ground.shape, act, num_threads);
  for (int64_t row = 0; row < act.rows; ++row) {
    const uint8_t* const keep = act.keep.data() + row * act.slots;
    const int64_t held = act.lens[row], stay = std::count(keep, keep + held, uint8_t{1});
    const int64_t gap = std::find(keep, keep + held, uint8_t{0}) - keep;
    act.dropped += held - stay;
    if (gap < stay) act.written[row] = {gap / size, ground.pages_for(stay)};
  }
  for (int64_t i = 0; i < act.num_blended; ++i) widen(act.written[act.blended[i]], act.carrier / size, act.carrier / size + 1);
}

void check_judged(const Act& act) {
  if (int64_t(act.written.size()) != act.rows) throw std::logic_error("an act that was not chosen yet; call choose_acts first");
}

// A run has an owner less. Pages that nobody owns any more are noted, by the run if all of it is.
void give_up(const Ground& ground, Act& act, int32_t base) {
  int64_t dead = 0;
  for (int64_t page = base; page < base + act.run; ++page) dead += --ground.refs[page] == 0;
  if (dead == act.run) {
    act.freed.push_back(base);
  } else if (dead) {
    for (int64_t page = base; page < base + act.run; ++page)
      if (ground.refs[page] == 0) act.freed_pages.push_back(int32_t(page));
  }
}

// What is written is nobody else's: pages that are get copies among `fresh`, whose first are taken already.
void own(const Ground& ground, Act& act, const std::vector<int32_t>& fresh, size_t& taken) {
  const int64_t bytes = act.run * ground.shape.page_bytes;
  for (int64_t row = 0; row < act.rows; ++row)
    for (int64_t column = act.written[row].first; column < act.written[row].end; ++column) {
      int32_t& base = act.bases[row * act.width + column];
      if (!shared(ground.refs, base, act.run)) continue;
      if (taken == fresh.size()) throw std::logic_error("no page for a copy, of " + std::to_string(fresh.size()));
      const int32_t copy = fresh[taken++];
      std::memcpy(ground.pages + copy * ground.shape.page_bytes, ground.pages + base * ground.shape.page_bytes, bytes);
      give_up(ground, act, std::exchange(base, copy));
    }
}

// Rows become as short as `lens` says; runs behind that are given up.
void cut(const Ground& ground, Act& act) {
  const int64_t size = ground.shape.page_size;
  act.room = std::numeric_limits<int64_t>::max(), act.tail_owned = true;
  for (int64_t row = 0; row < act.rows; ++row) {
    int32_t* const bases = act.bases + row * act.width;
    const int64_t left = ground.pages_for(act.lens[row]);
    act.room = std::min(act.room, left * size - act.lens[row]);
    for (int64_t column = left; column < act.counts[row]; ++column) give_up(ground, act, std::exchange(bases[column], 0));
    act.num_cut += act.counts[row] - left;
    act.counts[row] = int32_t(left);
    if (act.lens[row] % size && shared(ground.refs, bases[left - 1], act.run)) act.tail_owned = false;
  }
}

// The first slots stay and the newest.
void slide(const Ground& ground, Act& act) {
  const int64_t size = ground.shape.page_size, gap = act.from - act.sinks, left = act.lens[0] - gap;
  const int64_t linked = ground.pages_for(act.sinks), end = act.links ? linked * size : left;
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
  if (act.links) std::rotate(act.bases + linked, act.bases + linked + gap / size, act.bases + act.counts[0]);
  act.lens[0] = int32_t(left);
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

void close(const Ground& ground, Act& act, int num_threads) {
  if (act.num_blended) blend(ground, act);
  EvictArgs closing;
  closing.pages = ground.pages, closing.num_pages = ground.num_pages, closing.shape = ground.shape;
  closing.rows = act.bases, closing.width = act.width, closing.values = act.moved, closing.lens = act.lens;
  closing.choice.rows = act.rows, closing.choice.slots = act.slots;
  keep_only(closing, act.keep.data(), num_threads);
  for (const Remembered& one : act.cleared) std::fill_n(one.values, act.rows * one.width, 0.0f);
}

template <typename Work>
void each(const std::vector<Act*>& acts, const Work& work) {
  for (Act* act : acts) {
    if (!act->error.empty()) continue;
    try {
      work(*act);
    } catch (const std::exception& error) {
      act->error = error.what();
    }
  }
}

}  // namespace

void choose_acts(char* pages, int64_t num_pages, const PageShape& shape, int32_t* refs, const std::vector<Act*>& acts, int num_threads) {
  const Ground ground{pages, num_pages, shape, refs};
  each(acts, [&](Act& act) { judge(ground, act, num_threads); });
}

int64_t copies_of(const std::vector<Act*>& acts, const int32_t* refs) {
  std::unordered_map<int32_t, int64_t> writers;  // of runs that have other owners
  int64_t found = 0;
  for (const Act* act : acts) {
    check_judged(*act);
    for (int64_t row = 0; row < act->rows; ++row)
      for (int64_t column = act->written[row].first; column < act->written[row].end; ++column) {
        const int32_t base = act->bases[row * act->width + column];
        if (shared(refs, base, act->run)) found += ++writers[base] < *std::max_element(refs + base, refs + base + act->run);
      }
  }
  return found;
}

size_t run_acts(char* pages, int64_t num_pages, const PageShape& shape, int32_t* refs, const std::vector<Act*>& acts,
                const std::vector<int32_t>& fresh, int num_threads) {
  const Ground ground{pages, num_pages, shape, refs};
  size_t taken = 0;
  each(acts, [&](Act& act) {
    check_judged(act);
    int64_t runs = 0;
    for (int64_t row = 0; row < act.rows; ++row) runs += act.counts[row];
    act.freed.reserve(runs), act.freed_pages.reserve(act.run > 1 ? runs * act.run : 0);
    own(ground, act, fresh, taken);
    if (act.slides) slide(ground, act);
    else close(ground, act, num_threads);
    cut(ground, act);
  });
  return taken;
}

}  // namespace pagoda
