#include "window_sums.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "parallel.hpp"

namespace pagoda {

void window_sums(const WindowArgs& a, int num_threads, const std::string& isa) {
  const auto body = PAGODA_BODY(isa, add_window);
  const int64_t dim = a.read.shape.k_dim;
  parallel_for(a.read.count, num_threads, [&](int64_t row) {
    const int64_t slots = std::min(a.lens[row], a.slots), room = (slots + kWindowSlots - 1) / kWindowSlots * kWindowSlots, from = 0;
    std::vector<float> keys(room * dim), turned(dim * room), wide(kWindowQueries * dim), scores(kWindowQueries * room), received(room), wanted(room);
    std::vector<int32_t> positions(room, std::numeric_limits<int32_t>::max());
    ReadArgs one = a.read;
    one.rows = a.read.rows + row * a.read.width, one.count = 1, one.first = &from, one.slots = slots, one.k = keys.data(), one.v = nullptr;
    read_slots(one);
    for (int64_t slot = 0; slot < slots; ++slot) positions[slot] = int32_t(a.positions[row * a.slots + slot]);
    WindowHead head;
    head.rows = keys.data(), head.keys = turned.data(), head.positions = positions.data(), head.dim = dim, head.slots = slots, head.room = room;
    const int64_t group_bytes = a.group * dim * size_of(a.dtype);
    const auto queries_of = [&](int64_t one) { return a.queries + (one / a.heads * a.places * a.heads + one % a.heads) * group_bytes; };
    head.queries = queries_of(row), head.next_queries = row + 1 < a.read.count ? queries_of(row + 1) : nullptr;
    head.dtype = a.dtype, head.query_stride = a.heads * group_bytes, head.window = a.window, head.group = a.group;
    head.places = a.places, head.first_place = a.first_place;
    head.first_position = a.num_seen - a.window, head.scale = a.scale, head.soft_cap = a.soft_cap;
    head.wide = wide.data(), head.scores = scores.data(), head.received = received.data(), head.wanted = wanted.data();
    body(head);
    float *const to = a.received + row * a.slots, *const counts = a.wanted + row * a.slots;
    std::fill(std::copy_n(received.data(), slots, to), to + a.slots, 0.0f);
    std::fill(std::copy_n(wanted.data(), slots, counts), counts + a.slots, 0.0f);
  });
}

}  // namespace pagoda
