#include "window_sums.hpp"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "parallel.hpp"

namespace pagoda {

void window_sums(const WindowArgs& a, int num_threads, const std::string& isa) {
  const auto body = PAGODA_BODY(isa, add_window);
  const int64_t dim = a.read.shape.k_dim;
  const int64_t count = a.voters ? a.read.count / a.heads * a.num_voters : a.read.count, query_bytes = dim * size_of(a.dtype);
  const int64_t token_bytes = a.heads * a.group * query_bytes;
  const auto row_of = [&](int64_t one) { return a.voters ? one / a.num_voters * a.heads + a.voters[one] / a.group : one; };
  const auto queries_of = [&](int64_t one) {
    const int64_t layer = a.voters ? one / a.num_voters : one / a.heads, head = a.voters ? a.voters[one] : one % a.heads * a.group;
    return a.queries + layer * a.places * token_bytes + head * query_bytes;
  };
  parallel_for(count, num_threads, [&](int64_t at) {
    const int64_t row = row_of(at);
    const int64_t slots = std::min(a.lens[row], a.slots), room = (slots + kWindowSlots - 1) / kWindowSlots * kWindowSlots, from = 0;
    ReadArgs one = a.read;
    one.rows = a.read.rows + row * a.read.width, one.count = 1, one.first = &from, one.slots = slots;
    check_slots(one);
    // Kept by the thread: what is given back after each row comes again as memory that nobody touched yet.
    static thread_local std::vector<float> numbers;
    static thread_local std::vector<int32_t> positions;
    numbers.resize((kWindowSlots + kWindowQueries + room) * dim + (kWindowQueries + 4) * room);
    float* next = numbers.data();
    const auto take = [&](int64_t count) { return std::exchange(next, next + count); };
    WindowHead head;
    head.rows = take(kWindowSlots * dim), head.wide = take(kWindowQueries * dim), head.keys = take(dim * room);
    head.scores = take(kWindowQueries * room), head.received = take(room), head.wanted = take(room), head.largest = take(room), head.given = take(room);
    std::fill_n(head.received, 4 * room, 0.0f);
    positions.assign(room, std::numeric_limits<int32_t>::max());
    for (int64_t slot = 0; slot < slots; ++slot) positions[slot] = int32_t(a.positions[row * a.slots + slot]);
    head.pages = a.read.pages, head.shape = &a.read.shape, head.page_ids = one.rows;
    head.positions = positions.data(), head.dim = dim, head.slots = slots, head.room = room;
    head.queries = queries_of(at), head.next_queries = at + 1 < count ? queries_of(at + 1) : nullptr;
    head.dtype = a.dtype, head.query_stride = token_bytes, head.window = a.window, head.group = a.voters ? 1 : a.group;
    head.places = a.places, head.first_place = a.first_place;
    head.first_position = a.num_seen - a.window, head.scale = a.scale, head.soft_cap = a.soft_cap;
    body(head);
    for (const auto& [from, all] : {std::pair(head.received, a.received), std::pair(head.wanted, a.wanted), std::pair(head.largest, a.largest)}) {
      float* const to = all + at * a.slots;
      std::fill(std::copy_n(from, slots, to), to + a.slots, 0.0f);
    }
  });
}

}  // namespace pagoda
