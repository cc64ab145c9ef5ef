#include <nanobind/stl/string.h>

#include "bind.hpp"
#include "routing.hpp"

namespace nb = nanobind;

namespace pagoda {

void bind_routing(nb::module_& m) {
  m.def("route", [](uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t correction, int dtype, int64_t tokens, int64_t hidden, int kind,
                    int64_t experts, int64_t top_k, bool normalize, float scaling, int64_t groups, int64_t topk_group, uintptr_t logits,
                    uintptr_t ids, uintptr_t weights, int num_threads, const std::string& isa) {
    RouterArgs a;
    a.x = at<void>(x), a.weight = at<void>(weight), a.bias = at<void>(bias), a.dtype = Dtype(dtype), a.tokens = tokens, a.hidden = hidden;
    a.experts = experts, a.exact = Router(kind) == Router::sigmoid, a.logits = at<float>(logits);
    const RouterRule rule{Router(kind), experts, top_k, normalize, scaling, groups, topk_group};
    nb::gil_scoped_release release;
    router_logits(a, num_threads, isa);
    route(rule, a.logits, at<float>(correction), tokens, a.dtype, at<int64_t>(ids), at<float>(weights), num_threads, isa);
  }, "x, weight and bias (or 0) of one dtype, contiguous; logits float32 [tokens, experts] of room; ids int64 and weights float32 [tokens, top_k].");

  m.def("gate", [](uintptr_t x, uintptr_t weight, uintptr_t y, int dtype, int64_t tokens, int64_t hidden, int64_t width, uintptr_t logits,
                   int num_threads, const std::string& isa) {
    RouterArgs a;
    a.x = at<void>(x), a.weight = at<void>(weight), a.dtype = Dtype(dtype), a.tokens = tokens, a.hidden = hidden, a.experts = 1;
    a.logits = at<float>(logits);
    nb::gil_scoped_release release;
    router_logits(a, num_threads, isa);
    gate({at<void>(y), a.logits, width, a.dtype}, tokens, num_threads, isa);
  }, "y [tokens, width] in place, contiguous as x [tokens, hidden] and weight [hidden] are; logits float32 [tokens] of room.");
}

}  // namespace pagoda
