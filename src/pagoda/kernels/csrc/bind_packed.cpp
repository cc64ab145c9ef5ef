#include <nanobind/stl/string.h>

#include "bind.hpp"
#include "packed.hpp"

namespace nb = nanobind;

namespace pagoda {

void bind_packed(nb::module_& m) {
  m.def("packed_linear", [](uintptr_t x, uintptr_t bias, uintptr_t out, int64_t count, bool bf16, bool dynamic, int format,
                            int64_t outputs, int64_t inputs, int64_t group, uintptr_t data, uintptr_t scales,
                            uintptr_t zeros, bool wide_scales, int num_threads, const std::string& isa) {
    PackedLinearArgs a;
    a.matrix.format = static_cast<Format>(format), a.matrix.outputs = outputs, a.matrix.inputs = inputs;
    a.matrix.group = group, a.matrix.data = at<uint8_t>(data), a.matrix.scales = at<void>(scales);
    a.matrix.zeros = at<uint8_t>(zeros), a.matrix.wide_scales = wide_scales;
    a.x = at<void>(x), a.bias = at<void>(bias), a.out = at<void>(out), a.count = count;
    a.dtype = bf16 ? Dtype::bf16 : Dtype::f32, a.dynamic = dynamic;
    nb::gil_scoped_release release;
    packed_linear(a, num_threads, isa);
  }, "x, bias and out of one dtype, contiguous; bias, scales and zeros 0 where there are none.");
}

}  // namespace pagoda
