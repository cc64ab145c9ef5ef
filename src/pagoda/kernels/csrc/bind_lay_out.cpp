#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include "bf12_encode.hpp"
#include "bind.hpp"
#include "gguf_blocks.hpp"
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
  m.def("encode_rows", [](uintptr_t rows, int64_t num_rows, int64_t row_bytes, uintptr_t panels, uintptr_t windows, uintptr_t counts,
                          int num_threads, const std::string& isa) {
    const EncodeArgs a{at<uint8_t>(rows), num_rows, row_bytes, at<uint8_t>(panels), at<int32_t>(windows), at<int64_t>(counts), num_threads};
    bool finite = true;
    std::vector<uint32_t> exceptions;
    {
      nb::gil_scoped_release release;
      exceptions = encode_rows(a, finite, isa);
    }
    return std::tuple(finite, nb::bytes(reinterpret_cast<const char*>(exceptions.data()), exceptions.size() * 4));
  }, "Rows of bfloat16 into panels of bf12; whether all are finite, and the exceptions, uint32.");
  m.def("open_blocks", [](uintptr_t raw, int64_t num_blocks, int kind, uintptr_t out, bool as_bf16, int num_threads) {
    const OpenArgs a{at<uint8_t>(raw), num_blocks, static_cast<BlockKind>(kind), at<void>(out), as_bf16, num_threads};
    nb::gil_scoped_release release;
    open_blocks(a);
  }, "Blocks of a GGUF file as float32 or bfloat16.");
  m.def("split_q4_0", [](uintptr_t raw, int64_t num_blocks, uintptr_t codes, uintptr_t scales, int num_threads) {
    nb::gil_scoped_release release;
    split_q4_0(at<uint8_t>(raw), num_blocks, at<uint8_t>(codes), at<float>(scales), num_threads);
  }, "Q4_0 as codes of int4 in groups of 32, and their scales.");
}

}  // namespace pagoda
