// A packed weight as Python hands it over (cpu_packed.packed_matrix).
#pragma once

#include <tuple>

#include "bind.hpp"
#include "packed.hpp"

namespace pagoda {

// format, outputs, inputs, group, data, scales (bf12: windows), zeros, wide_scales
using BoundMatrix = std::tuple<int, int64_t, int64_t, int64_t, uintptr_t, uintptr_t, uintptr_t, bool>;

inline PackedMatrix matrix_of(int format, int64_t outputs, int64_t inputs, int64_t group, uintptr_t data, uintptr_t scales, uintptr_t zeros,
                              bool wide_scales) {
  PackedMatrix m;
  m.format = static_cast<Format>(format), m.outputs = outputs, m.inputs = inputs, m.group = group;
  m.data = at<uint8_t>(data), m.zeros = at<uint8_t>(zeros), m.wide_scales = wide_scales;
  if (m.format == Format::bf12) m.windows = at<Window>(scales);
  else m.scales = at<void>(scales);
  return m;
}

}  // namespace pagoda
