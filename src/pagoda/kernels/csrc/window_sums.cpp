#include "window_sums.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "parallel.hpp"

namespace pagoda {

void window_sums(const WindowArgs& a, int num_threads, const std::string& isa) {
  const auto body = PAGODA_BODY(isa, add_window);
  const int64_t dim = a.read.shape.k_dim, room = (a.slots + kWindowSlots - 1) / kWindowSlots * kWindowSlots;
  parallel_for(a.read.count, num_threads, [&](int64_t row) {
    const int64_t slots = std::min(a.lens[row], a.slots), from = 0;
    std::vector<float> keys(slots * dim), turned(dim * room), wide(kWindowQueries * dim), scores(kWindowQueries * room), received(room), wanted(room);
    std::vector<int32_t> positions(room, std::numeric_limits<int32_t>::max());
    ReadArgs one = a.read;
    one.rows = a.read.rows + row * a.read.width, one.count = 1, one.first = &from, one.slots = slots, one.k = keys.data(), one.v = nullptr;
    read_slots(one);
    for (int64_t slot = 0; slot < slots; ++slot) positions[slot] = int32_t(a.positions[row * a.slots + slot]);
    for (int64_t begin = 0; begin < slots; begin += kWindowSlots)  // few lines at a time
      for (int64_t d = 0; d < dim; ++d)
        for (int64_t slot = begin; slot < std::min(slots, begin + kWindowSlots); ++slot) turned[d * room + slot] = keys[slot * dim + d];
    WindowHead head;
    head.keys = turned.data(), head.positions = positions.data(), head.dim = dim, head.slots = slots, head.room = room;
    const int64_t group_bytes = a.group * dim * size_of(a.dtype);
    const auto queries_of = [&](int64_t one) { return a.queries + (one / a.heads * a.places * a.heads + one % a.heads) * group_bytes; };
    head.queries = queries_of(row), head.next_queries = row + 1 < a.read.count ? queries_of(row + 1) : nullptr;
    head.dtype = a.dtype, head.query_stride = a.heads * group_bytes, head.window = a.window, head.group = a.group;
    head.places = a.places, head.first_place = a.first_place;
    head.first_position = a.num_seen - a.window, head.scale = a.scale, head.soft_cap = a.soft_cap;
    head.wide = wide.data(), head.scores = scores.data(), head.received = received.data(), head.wanted = wanted.data();
    body(head);
    std::copy_n(received.data(), a.slots, a.received + row * a.slots);
    std::copy_n(wanted.data(), a.slots, a.wanted + row * a.slots);
  });
}

}  // namespace pagoda
