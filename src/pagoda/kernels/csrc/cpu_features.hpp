// What this processor can do, and what the operating system lets it do (a register file that is not saved on a context
// switch must not be used, whatever cpuid says).
#pragma once

#include <map>
#include <string>

namespace pagoda {

// Feature name (the kernel's spelling) -> usable here. On other processors than x86-64: empty.
std::map<std::string, bool> cpu_features();

// The best instruction set that the kernels are compiled for and this machine has: "amx", "avx512bf16slow", "avx512bf16", "avx512vnni",
// "avx512", "avx2" or "base". The environment variable PAGODA_ISA lowers it for the whole process (read once). Throws std::invalid_argument for
// an unknown name there. What would be AMX asks the system first (once; it holds for all threads and for children): if that refuses,
// the one below.
std::string best_isa();

}  // namespace pagoda
