#include <nanobind/stl/string.h>

#include "bind.hpp"
#include "head_products.hpp"
#include "routing.hpp"

namespace nb = nanobind;

namespace pagoda {

void bind_routing(nb::module_& m) {
  m.def("router_logits", [](uintptr_t x, uintptr_t weight, uintptr_t bias, int dtype, int64_t tokens, int64_t hidden, int64_t experts, bool exact,
                            uintptr_t logits, int num_threads, const std::string& isa) {
    RouterArgs a;
    a.x = at<void>(x), a.weight = at<void>(weight), a.bias = at<void>(bias), a.dtype = Dtype(dtype), a.tokens = tokens, a.hidden = hidden;
    a.experts = experts, a.exact = exact, a.logits = at<float>(logits);
    nb::gil_scoped_release release;
    router_logits(a, num_threads, isa);
  }, "x, weight and bias (or 0) of one dtype, contiguous; logits float32 [tokens, experts].");

  m.def("route", [](uintptr_t logits, uintptr_t correction, int64_t tokens, int dtype, int kind, int64_t experts, int64_t top_k, bool normalize,
                    float scaling, int64_t groups, int64_t topk_group, uintptr_t ids, uintptr_t weights, int num_threads, const std::string& isa) {
    const RouterRule rule{Router(kind), experts, top_k, normalize, scaling, groups, topk_group};
    nb::gil_scoped_release release;
    route(rule, at<float>(logits), at<float>(correction), tokens, Dtype(dtype), at<int64_t>(ids), at<float>(weights), num_threads, isa);
  }, "logits float32 [tokens, experts] contiguous, overwritten; ids int64 and weights float32 [tokens, top_k].");

  m.def("head_products", [](uintptr_t x, int64_t x_token, int64_t x_head, uintptr_t out, int64_t out_token, int64_t out_head, uintptr_t weight,
                            int64_t tokens, int64_t heads, int64_t rows, int64_t columns, bool down, int dtype, int num_threads, const std::string& isa) {
    HeadProductArgs a;
    a.x = at<void>(x), a.x_token = x_token, a.x_head = x_head, a.out = at<void>(out), a.out_token = out_token, a.out_head = out_head;
    a.weight = at<void>(weight), a.tokens = tokens, a.heads = heads, a.rows = rows, a.columns = columns, a.down = down, a.dtype = Dtype(dtype);
    nb::gil_scoped_release release;
    head_products(a, num_threads, isa);
  }, "All of one dtype; strides in elements, weight [heads, rows, columns] contiguous.");

  m.def("gate", [](uintptr_t y, uintptr_t logits, int64_t tokens, int64_t width, int dtype, int num_threads, const std::string& isa) {
    nb::gil_scoped_release release;
    gate({at<void>(y), at<float>(logits), width, Dtype(dtype)}, tokens, num_threads, isa);
  }, "y [tokens, width] in place, contiguous; logits float32 [tokens].");
}

}  // namespace pagoda
