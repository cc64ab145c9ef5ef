#include <nanobind/stl/string.h>

#include "bind.hpp"
#include "quantize.hpp"

namespace nb = nanobind;

namespace pagoda {

void bind_quantize(nb::module_& m) {
  m.def("quantize_rows", [](uintptr_t rows, int64_t num_rows, int64_t cols, int dtype, int bits, bool floats, int64_t group,
                            bool wide_scales, uintptr_t codes, uintptr_t scales, uintptr_t zeros, int num_threads, const std::string& isa) {
    const QuantizeArgs a{at<uint8_t>(rows), num_rows, cols, static_cast<Dtype>(dtype), bits, floats, group,
                         wide_scales, at<uint8_t>(codes), at<uint8_t>(scales), at<uint8_t>(zeros), num_threads};
    nb::gil_scoped_release release;
    return quantize_rows(a, isa);
  }, "Rows of plain weights to codes and scales, to the nearest; False where a value is not finite.");
}

}  // namespace pagoda
