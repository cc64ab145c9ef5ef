// Bindings of pagoda.kernels._cpu, one file per family of kernels: plain addresses in, nothing of torch. The Python side
// (kernels/cpu_*.py) checks shapes and dtypes.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

namespace pagoda {

template <typename T>
T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }

void bind_acts(nanobind::module_& m);
void bind_pages(nanobind::module_& m);
void bind_attention(nanobind::module_& m);
void bind_choice(nanobind::module_& m);
void bind_files(nanobind::module_& m);
void bind_page_numbers(nanobind::module_& m);
void bind_linear(nanobind::module_& m);
void bind_lay_out(nanobind::module_& m);
void bind_packed(nanobind::module_& m);
void bind_quantize(nanobind::module_& m);
void bind_routing(nanobind::module_& m);
void bind_rows(nanobind::module_& m);
void bind_slots(nanobind::module_& m);
void bind_program(nanobind::module_& m);

}  // namespace pagoda
