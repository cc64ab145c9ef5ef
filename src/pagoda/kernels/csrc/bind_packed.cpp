#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind_matrix.hpp"
#include "packed.hpp"

namespace nb = nanobind;

namespace pagoda {

void bind_packed(nb::module_& m) {
  m.def("packed_linear", [](uintptr_t x, uintptr_t bias, uintptr_t out, int64_t count, bool bf16, bool dynamic, bool wide, int format,
                            int64_t outputs, int64_t inputs, int64_t group, uintptr_t data, uintptr_t scales,
                            uintptr_t zeros, bool wide_scales, int num_threads, const std::string& isa) {
    PackedLinearArgs a;
    a.matrix = matrix_of(format, outputs, inputs, group, data, scales, zeros, wide_scales), a.wide = wide;
    a.x = at<void>(x), a.bias = at<void>(bias), a.out = at<void>(out), a.count = count;
    a.dtype = bf16 ? Dtype::bf16 : Dtype::f32, a.dynamic = dynamic;
    nb::gil_scoped_release release;
    packed_linear(a, num_threads, isa);
  }, "x, bias and out of one dtype (out float32 where wide), contiguous; bias, scales and zeros 0 where there are none.");

  m.def("grouped_linear", [](uintptr_t x, uintptr_t out, int64_t count, bool bf16, bool dynamic,
                             const std::vector<std::tuple<int64_t, uintptr_t, int, int64_t, int64_t, int64_t, uintptr_t, uintptr_t,
                                                          uintptr_t, bool>>& groups, int num_threads, const std::string& isa) {
    GroupedLinearArgs a;
    a.x = at<void>(x), a.out = at<void>(out), a.count = count, a.dtype = bf16 ? Dtype::bf16 : Dtype::f32, a.dynamic = dynamic;
    for (const auto& [tokens, bias, format, outputs, inputs, group, data, scales, zeros, wide_scales] : groups)
      a.groups.push_back({matrix_of(format, outputs, inputs, group, data, scales, zeros, wide_scales), at<void>(bias), tokens});
    nb::gil_scoped_release release;
    grouped_linear(a, num_threads, isa);
  }, "groups: (tokens, bias or 0, matrix as packed_linear takes it) of one format and shape; x and out of one dtype, contiguous.");

  m.def("packed_embedding", [](uintptr_t ids, uintptr_t out, int64_t count, bool bf16, int format, int64_t outputs, int64_t inputs,
                               int64_t group, uintptr_t data, uintptr_t scales, uintptr_t zeros, bool wide_scales, int num_threads) {
    const PackedMatrix matrix = matrix_of(format, outputs, inputs, group, data, scales, zeros, wide_scales);
    nb::gil_scoped_release release;
    packed_embedding(matrix, at<int64_t>(ids), count, at<void>(out), bf16 ? Dtype::bf16 : Dtype::f32, num_threads);
  }, "Rows ids[i], int64, into out [count, inputs]. IndexError for an id that is no row.");
}

}  // namespace pagoda
