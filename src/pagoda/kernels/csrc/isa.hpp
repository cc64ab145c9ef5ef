// Which compiled body runs: the best of this machine, or the one that a test asks for.
//
// Every *_body.cpp is compiled once per instruction set (CMakeLists.txt), into the namespace PAGODA_ISA. A header declares
// its bodies with PAGODA_DECLARE_BODIES, and PAGODA_BODY picks one at run time. The last instruction set is AMX: what multiplies
// tiles lies in *_tiles.cpp, compiled for it alone and declared under PAGODA_X86 in the namespace amx; a driver takes it where
// isa_index() is kTilesIsa. All else runs the bodies of avx512bf16, so that neither the build nor the extension grows by a sixth.
//
// avx512bf16slow has the instructions of avx512bf16 and the same bodies, and multiplies by pairs of bfloat16 only what is faster so: on an Intel
// Xeon `vdpbf16ps` does half of what multiplying floats does, on an AMD EPYC twice that, and others are taken to be like those (cpu_features.cpp).
#pragma once

#include <string>

namespace pagoda {

// Index into {base, avx2, avx512, avx512vnni, avx512bf16, avx512bf16slow, amx}, each a superset of the one before; "" is the best.
// Throws std::invalid_argument for an unknown or unusable one.
int isa_index(const std::string& asked);

constexpr int kPairsIsa = 4;  // avx512bf16, the first with a dot product of pairs of bfloat16; the last that bodies are compiled for
constexpr int kSlowPairsIsa = 5;  // avx512bf16slow
constexpr int kTilesIsa = 6;  // amx: products of tiles of int8 and bfloat16, permitted by the system

}  // namespace pagoda

// Declares `result name parameters;` for every instruction set that is compiled.
#ifdef PAGODA_X86
#define PAGODA_DECLARE_BODIES(result, name, parameters) \
  namespace base { result name parameters; }            \
  namespace avx2 { result name parameters; }            \
  namespace avx512 { result name parameters; }          \
  namespace avx512vnni { result name parameters; }      \
  namespace avx512bf16 { result name parameters; }
#define PAGODA_BODY(asked, name)                                                                          \
  [](int index) {                                                                                         \
    decltype(&::pagoda::base::name) const bodies[] = {                                                    \
        &::pagoda::base::name, &::pagoda::avx2::name, &::pagoda::avx512::name, &::pagoda::avx512vnni::name, \
        &::pagoda::avx512bf16::name};                                                                     \
    return bodies[index < ::pagoda::kPairsIsa ? index : ::pagoda::kPairsIsa];                             \
  }(::pagoda::isa_index(asked))
#else
#define PAGODA_DECLARE_BODIES(result, name, parameters) \
  namespace base { result name parameters; }
#define PAGODA_BODY(asked, name) (::pagoda::isa_index(asked), &::pagoda::base::name)
#endif
