#include <nanobind/stl/string.h>

#include "bind.hpp"
#include "linear.hpp"

namespace nb = nanobind;

namespace pagoda {

void bind_linear(nb::module_& m) {
  m.attr("max_linear_tokens") = kMaxLinearTokens;
  m.def("linear", [](uintptr_t x, uintptr_t weight, int64_t weight_stride, uintptr_t bias, uintptr_t out, int64_t tokens,
                     int64_t inputs, int64_t outputs, int num_threads, const std::string& isa) {
    const LinearArgs a{at<uint16_t>(x), at<uint16_t>(weight), at<uint16_t>(bias), at<uint16_t>(out),
                               tokens, inputs, outputs, weight_stride};
    nb::gil_scoped_release release;
    linear(a, num_threads, isa);
  }, "bfloat16 throughout; bias 0 when there is none.");
}

}  // namespace pagoda
