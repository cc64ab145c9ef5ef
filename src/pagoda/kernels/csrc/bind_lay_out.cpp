#include "bind.hpp"
#include "lay_out.hpp"

namespace nb = nanobind;

namespace pagoda {

void bind_lay_out(nb::module_& m) {
  m.def("lay_out", [](uintptr_t rows, int64_t num_rows, int64_t row_bytes, uintptr_t panels, int stored,
                      int num_threads) {
    const LayOutArgs a{at<uint8_t>(rows), num_rows, row_bytes, at<uint8_t>(panels), static_cast<Stored>(stored),
                       num_threads};
    nb::gil_scoped_release release;
    return lay_out(a);
  }, "Rows as they are stored into panels; False where a float is not finite.");
}

}  // namespace pagoda
