// Moved pages, for one instruction set (moved_pages.hpp).
#include "attention_rows.hpp"
#include "moved_pages.hpp"
#include "vec.hpp"

namespace pagoda {
namespace {

void read_row(const PageShape& shape, const char* page, const Plane& rows, const Plane& scales, int64_t slot, int64_t dim, float* out) {
  const char* scale = page + scales.at + slot * scales.bytes;
  widen_row(shape.store, page + rows.at + slot * rows.bytes, scale, dim, out);
  if (shape.store != Store::int8 && shape.store != Store::fp8) return;
  const float unit = widen(*(const uint16_t*)scale);
  for (int64_t d = 0; d < dim; ++d) out[d] *= unit;
}

void write_row(Store as, const float* row, int64_t dim, char* to) {
  if (as == Store::f32) memcpy(to, row, sizeof(float) * dim);
  else
    for (int64_t d = 0; d < dim; ++d) narrow(row[d], (uint16_t*)to + d);
}

void turn_row(float* row, int64_t half, const float* turn) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = row[i], b = row[half + i], cosine = turn[i], sine = turn[half + i];
    row[i] = a * cosine - b * sine, row[half + i] = b * cosine + a * sine;
  }
}

}  // namespace

namespace PAGODA_ISA {

void move_page(const MoveArgs& a) {
  const PageShape &from = a.shape, &to = a.numbers;
  for (int64_t slot = 0; slot < from.page_size; ++slot) {
    read_row(from, a.from, from.k, from.k_scales, slot, from.k_dim, a.room);
    turn_row(a.room, from.k_dim / 2, a.turn);
    write_row(to.store, a.room, to.k_dim, a.to + to.k.at + slot * to.k.bytes);
  }
  if (from.store == to.store) {
    memcpy(a.to + to.v.at, a.from + from.v.at, to.page_size * to.v.bytes);
    return;
  }
  for (int64_t slot = 0; slot < from.page_size; ++slot) {
    read_row(from, a.from, from.v, from.v_scales, slot, from.v_dim, a.room);
    write_row(to.store, a.room, to.v_dim, a.to + to.v.at + slot * to.v.bytes);
  }
}

}  // namespace PAGODA_ISA
}  // namespace pagoda
