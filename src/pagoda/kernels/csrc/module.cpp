// pagoda.kernels._cpu. Addresses are integers, strides and sizes as named.
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include "bind.hpp"
#include "caches.hpp"
#include "cpu_features.hpp"
#include "parallel.hpp"

extern const char* const pagoda_sources;  // written by the build (kernels/sources.py)

NB_MODULE(_cpu, m) {
  m.doc() = "C++ kernels of Pagoda. Addresses are integers, strides and sizes as named.";
  m.attr("version") = PAGODA_VERSION;
  m.attr("sources") = pagoda_sources;
  m.def("cpu_features", &pagoda::cpu_features, "Feature name -> usable on this machine (cpuid and xgetbv).");
  m.def("best_isa", &pagoda::best_isa, "The instruction set that the kernels choose here.");
  m.def("caches", [] {
    const pagoda::Caches sizes = pagoda::caches();
    return std::pair(sizes.first, sizes.second);
  }, "Bytes of the first and second data cache that tiles are cut by.");
  m.def("assume_caches", [](int64_t first, int64_t second) { pagoda::assume_caches({first, second}); },
        "Cut tiles by these from now on; zeros: by the machine's.");
  m.def("read_caches", [](const std::string& root, int cpu) {
    const pagoda::Caches sizes = pagoda::read_caches(root, cpu);
    return std::pair(sizes.first, sizes.second);
  }, "What the system says under `root` of one CPU.");
  m.def("num_workers", &pagoda::num_workers, "Threads of the pool, beside the callers; started by the first job that has use for them.");
  pagoda::bind_acts(m);
  pagoda::bind_pages(m);
  pagoda::bind_attention(m);
  pagoda::bind_choice(m);
  pagoda::bind_files(m);
  pagoda::bind_page_numbers(m);
  pagoda::bind_linear(m);
  pagoda::bind_packed(m);
  pagoda::bind_lay_out(m);
  pagoda::bind_quantize(m);
  pagoda::bind_routing(m);
  pagoda::bind_rows(m);
  pagoda::bind_slots(m);
  pagoda::bind_program(m);
}
