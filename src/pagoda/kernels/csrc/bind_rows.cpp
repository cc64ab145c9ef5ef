#include <nanobind/stl/string.h>

#include "bind.hpp"
#include "likeliest.hpp"
#include "rows.hpp"

namespace nb = nanobind;

namespace pagoda {

void bind_rows(nb::module_& m) {
  m.def("norm", [](uintptr_t x, uintptr_t out, int64_t rows, int64_t dim, int64_t row_stride, int dtype, uintptr_t weight,
                   uintptr_t bias, float eps, float offset, bool centred, bool round_first, int num_threads,
                   const std::string& isa) {
    NormArgs a;
    a.x = at<void>(x), a.out = at<void>(out), a.rows = rows, a.dim = dim, a.row_stride = row_stride, a.out_stride = dim;
    a.dtype = Dtype(dtype), a.weight = at<void>(weight), a.bias = at<void>(bias), a.eps = eps, a.offset = offset;
    a.centred = centred, a.round_first = round_first;
    nb::gil_scoped_release release;
    norm(a, num_threads, isa);
  }, "Rows of one part; weight and bias 0 when there are none; out [rows, dim] contiguous.");

  m.def("rotary", [](uintptr_t x, int64_t rows, int64_t heads, int64_t dim, int64_t row_stride, int dtype, uintptr_t cos,
                     uintptr_t sin, int angle_dtype, int64_t pairs, bool interleaved, int num_threads, const std::string& isa) {
    RotaryArgs a;
    a.x = at<void>(x), a.rows = rows, a.heads = heads, a.dim = dim, a.row_stride = row_stride, a.dtype = Dtype(dtype);
    a.cos = at<void>(cos), a.sin = at<void>(sin), a.angle_dtype = Dtype(angle_dtype), a.pairs = pairs;
    a.interleaved = interleaved;
    nb::gil_scoped_release release;
    rotary(a, num_threads, isa);
  }, "In place; cos and sin [rows, pairs].");

  m.def("activation", [](uintptr_t gate, uintptr_t up, uintptr_t out, int64_t rows, int64_t width, int64_t row_stride,
                         int dtype, int kind, float alpha, float limit, int num_threads, const std::string& isa) {
    ActivationArgs a;
    a.gate = at<void>(gate), a.up = at<void>(up), a.out = at<void>(out), a.rows = rows, a.width = width;
    a.row_stride = row_stride, a.out_stride = width, a.dtype = Dtype(dtype), a.kind = Activation(kind);
    a.alpha = alpha, a.limit = limit;
    nb::gil_scoped_release release;
    activation(a, num_threads, isa);
  }, "up 0: act(gate) alone; gate and up share their row stride; out [rows, width] contiguous.");

  m.def("greedy", [](uintptr_t logits, int64_t rows, int64_t width, uintptr_t ids, int num_threads, const std::string& isa) {
    nb::gil_scoped_release release;
    greedy(at<float>(logits), rows, width, at<int64_t>(ids), num_threads, isa);
  }, "logits float32 [rows, width] contiguous -> ids int64 [rows]: the first of the largest, -1 where no token is possible.");

  m.def("likeliest", [](uintptr_t logits, int64_t rows, int64_t count, int64_t width, uintptr_t values, uintptr_t ids, int num_threads,
                        const std::string& isa) {
    nb::gil_scoped_release release;
    likeliest(at<float>(logits), rows, count, width, at<float>(values), at<int64_t>(ids), num_threads, isa);
  }, "logits float32 [rows, count] contiguous -> the `width` largest of each row, falling, and their ids [rows, width].");
}

}  // namespace pagoda
