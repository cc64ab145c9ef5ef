// Moved pages, for one instruction set (moved_pages.hpp).
#include "attention_rows.hpp"
#include "fetch.hpp"
#include "moved_pages.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

// Row `slot` of a plane as numbers, in `room`.
const float* read(const MoveArgs& a, const Plane& rows, const Plane& scales, int64_t slot, int64_t dim) {
  read_row(a.shape.store, a.from + rows.at + slot * rows.bytes, a.from + scales.at + slot * scales.bytes, dim, a.room);
  return a.room;
}

// A key of 2 * half channels, turned.
template <typename From, typename To>
inline void turn_row(const From* row, int64_t half, const float* turn, To* to) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec x = load(row + i), y = load(row + half + i), cosine = load(turn + i), sine = load(turn + half + i);
    store(to + i, x * cosine - y * sine), store(to + half + i, y * cosine + x * sine);
  }
  for (; i < half; ++i) {
    const float x = widen(row[i]), y = widen(row[half + i]);
    narrow(x * turn[i] - y * turn[half + i], to + i), narrow(y * turn[i] + x * turn[half + i], to + half + i);
  }
}

template <typename To>
void move_as(const MoveArgs& a) {
  const PageShape &from = a.shape, &to = a.numbers;
  const int64_t half = from.k_dim / 2, part = from.page_bytes / from.page_size;
  for (int64_t slot = 0; slot < from.page_size; ++slot) {
    fetch(a.soon + slot * part, part);
    To* key = (To*)(a.to + to.k.at + slot * to.k.bytes);
    if (from.store == to.store) turn_row((const To*)(a.from + from.k.at + slot * from.k.bytes), half, a.turn, key);
    else turn_row(read(a, from.k, from.k_scales, slot, from.k_dim), half, a.turn, key);
  }
  if (from.store == to.store) {
    memcpy(a.to + to.v.at, a.from + from.v.at, to.page_size * to.v.bytes);
    return;
  }
  for (int64_t slot = 0; slot < from.page_size; ++slot) {
    const float* value = read(a, from.v, from.v_scales, slot, from.v_dim);
    To* out = (To*)(a.to + to.v.at + slot * to.v.bytes);
    for (int64_t d = 0; d < from.v_dim; ++d) narrow(value[d], out + d);
  }
}

}  // namespace

namespace PAGODA_ISA {

void move_page(const MoveArgs& a) { a.numbers.store == Store::f32 ? move_as<float>(a) : move_as<uint16_t>(a); }

}  // namespace PAGODA_ISA
}  // namespace pagoda
