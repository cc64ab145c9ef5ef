#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind.hpp"
#include "hashes.hpp"
#include "slots.hpp"
#include "window_sums.hpp"

namespace nb = nanobind;

namespace pagoda {

static KeepBestArgs choice(uintptr_t scores, int64_t stride, uintptr_t lens, uintptr_t budgets, int64_t rows, int64_t slots,
                           int64_t sinks, int64_t recent, float least, int64_t pool) {
  KeepBestArgs a;
  a.scores = at<float>(scores), a.stride = stride, a.lens = at<int64_t>(lens), a.budgets = at<int64_t>(budgets);
  a.rows = rows, a.slots = slots, a.sinks = sinks, a.recent = recent, a.least = least, a.pool = pool;
  return a;
}

static ReadArgs read(uintptr_t pages, int64_t num_pages, int store, int64_t page_size, int64_t k_dim, int64_t v_dim, uintptr_t rows,
                     int64_t count, int64_t width, uintptr_t first, int64_t slots, uintptr_t k, uintptr_t v) {
  ReadArgs a;
  a.pages = at<char>(pages), a.num_pages = num_pages, a.shape = PageShape(Store(store), page_size, k_dim, v_dim);
  a.rows = at<int32_t>(rows), a.count = count, a.width = width, a.first = at<int64_t>(first), a.slots = slots;
  a.k = at<float>(k), a.v = at<float>(v);
  return a;
}

void bind_slots(nb::module_& m) {
  m.def("keep_best", [](uintptr_t scores, int64_t stride, uintptr_t lens, uintptr_t budgets, int64_t rows, int64_t slots,
                        int64_t sinks, int64_t recent, float least, int64_t pool, uintptr_t keep) {
    KeepBestArgs a = choice(scores, stride, lens, budgets, rows, slots, sinks, recent, least, pool);
    a.keep = at<uint8_t>(keep);
    keep_best(a);
  }, "scores: 0 where all are equal.");

  m.def("evict", [](uintptr_t pages, int64_t num_pages, int store, int64_t page_size, int64_t k_dim, int64_t v_dim,
                    uintptr_t bases, int64_t width, uintptr_t scores, int64_t stride, uintptr_t lens, uintptr_t budgets, int64_t rows,
                    int64_t slots, int64_t sinks, int64_t recent, float least, int64_t pool,
                    const std::vector<std::pair<uintptr_t, int64_t>>& values, uintptr_t left, int num_threads) {
    EvictArgs a;
    a.pages = at<char>(pages), a.num_pages = num_pages, a.shape = PageShape(Store(store), page_size, k_dim, v_dim);
    a.rows = at<int32_t>(bases), a.width = width;
    a.choice = choice(scores, stride, lens, budgets, rows, slots, sinks, recent, least, pool);
    for (const auto& [address, columns] : values) a.values.push_back({at<float>(address), columns});
    a.lens = at<int32_t>(left);
    evict(a, num_threads);
  }, "values: (address, columns) of what is remembered of each slot.");

  m.def("read_slots", [](uintptr_t pages, int64_t num_pages, int store, int64_t page_size, int64_t k_dim, int64_t v_dim, uintptr_t rows,
                         int64_t count, int64_t width, uintptr_t first, int64_t slots, uintptr_t k, uintptr_t v) {
    read_slots(read(pages, num_pages, store, page_size, k_dim, v_dim, rows, count, width, first, slots, k, v));
  });

  m.def("weigh_slots", [](uintptr_t pages, int64_t num_pages, int store, int64_t page_size, int64_t k_dim, int64_t v_dim, uintptr_t rows,
                          int64_t count, int64_t width, uintptr_t first, int64_t slots, uintptr_t k, uintptr_t v, uintptr_t weights) {
    weigh_slots(read(pages, num_pages, store, page_size, k_dim, v_dim, rows, count, width, first, slots, k, v), at<float>(weights));
  });

  m.def("hash_slots", [](uintptr_t pages, int64_t num_pages, int store, int64_t page_size, int64_t k_dim, int64_t v_dim, uintptr_t rows,
                         int64_t count, int64_t width, uintptr_t first, int64_t slots, uintptr_t planes, int64_t bits, uintptr_t hashes,
                         int64_t stride, int64_t room, const std::string& isa) {
    const ReadArgs a = read(pages, num_pages, store, page_size, k_dim, v_dim, rows, count, width, first, slots, 0, 0);
    hash_slots(a, at<float>(planes), bits, at<float>(hashes), stride, room, isa);
  });

  m.def("hash_scores", [](uintptr_t hashes, int64_t stride, int64_t rows, int64_t slots, uintptr_t queries, int64_t group, int64_t dim,
                          uintptr_t planes, int64_t bits, uintptr_t scores, const std::string& isa) {
    hash_scores({at<float>(hashes), stride, rows, slots, nullptr, group, bits, at<float>(scores)}, at<float>(queries), dim,
                at<float>(planes), isa);
  });

  m.def("window_sums", [](uintptr_t pages, int64_t num_pages, int store, int64_t page_size, int64_t k_dim, int64_t v_dim, uintptr_t rows,
                          int64_t count, int64_t width, uintptr_t lens, uintptr_t positions, int64_t slots, int64_t heads,
                          uintptr_t queries, int dtype, int64_t window, int64_t group, int64_t num_seen, float scale, float soft_cap,
                          uintptr_t received, uintptr_t wanted, uintptr_t largest, int num_threads, const std::string& isa) {
    WindowArgs a;
    a.read = read(pages, num_pages, store, page_size, k_dim, v_dim, rows, count, width, 0, slots, 0, 0);
    a.lens = at<int64_t>(lens), a.positions = at<int64_t>(positions), a.slots = slots, a.heads = heads;
    a.queries = at<char>(queries), a.dtype = Dtype(dtype), a.window = a.places = window, a.group = group, a.num_seen = num_seen;
    a.scale = scale, a.soft_cap = soft_cap, a.received = at<float>(received), a.wanted = at<float>(wanted), a.largest = at<float>(largest);
    window_sums(a, num_threads, isa);
  });

  m.def("close_gaps", [](uintptr_t pages, int64_t num_pages, int64_t page_bytes, int64_t page_size,
                         const std::vector<std::pair<int64_t, int64_t>>& planes, uintptr_t rows, int64_t width, uintptr_t keep,
                         int64_t count, int64_t slots, int num_threads) {
    std::vector<Plane> list;
    for (const auto& [first, bytes] : planes) list.push_back({first, bytes});
    close_gaps(at<char>(pages), num_pages, page_bytes, page_size, list, at<int32_t>(rows), width, at<uint8_t>(keep), count, slots,
               num_threads);
  }, "planes: (first byte, bytes a slot).");

  m.def("close_rows", [](uintptr_t values, int64_t stride, int64_t width, uintptr_t keep, int64_t count, int64_t slots) {
    close_rows(at<float>(values), stride, width, at<uint8_t>(keep), count, slots);
  });

  m.def("add_sums", [](uintptr_t sums, int64_t layers, int64_t seqs, int64_t heads, int64_t slots, uintptr_t targets,
                       uintptr_t widths) {
    add_sums(at<float>(sums), layers, seqs, heads, slots, at<int64_t>(targets), at<int64_t>(widths));
  }, "targets: addresses.");
}

}  // namespace pagoda
