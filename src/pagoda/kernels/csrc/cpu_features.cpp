#include "cpu_features.hpp"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <vector>

#include "isa.hpp"

#ifdef PAGODA_X86
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace pagoda {

#ifdef PAGODA_X86

namespace {

struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Leaf cpuid(unsigned leaf, unsigned sub) {
  Leaf r;
  __get_cpuid_count(leaf, sub, &r.eax, &r.ebx, &r.ecx, &r.edx);  // zeros where the leaf does not exist
  return r;
}

bool bit(unsigned word, int index) { return (word >> index) & 1u; }

// XCR0: the register files that the operating system saves.
unsigned xcr0(const Leaf& one) {
  if (!bit(one.ecx, 27)) return 0;  // OSXSAVE
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

}  // namespace

std::map<std::string, bool> cpu_features() {
  const Leaf one = cpuid(1, 0), seven = cpuid(7, 0), seven1 = cpuid(7, 1);
  const unsigned saved = xcr0(one);
  const bool ymm = (saved & 0x6) == 0x6;                       // SSE and AVX state
  const bool zmm = ymm && (saved & 0xe0) == 0xe0;              // opmask, upper halves, upper registers
  const bool tiles = (saved & 0x60000) == 0x60000;             // AMX tile configuration and data
  return {
      {"avx", ymm && bit(one.ecx, 28)},
      {"avx2", ymm && bit(seven.ebx, 5)},
      {"fma", ymm && bit(one.ecx, 12)},
      {"f16c", ymm && bit(one.ecx, 29)},
      {"avx_vnni", ymm && bit(seven1.eax, 4)},
      {"avx512f", zmm && bit(seven.ebx, 16)},
      {"avx512dq", zmm && bit(seven.ebx, 17)},
      {"avx512bw", zmm && bit(seven.ebx, 30)},
      {"avx512vl", zmm && bit(seven.ebx, 31)},
      {"avx512vbmi", zmm && bit(seven.ecx, 1)},
      {"avx512_vnni", zmm && bit(seven.ecx, 11)},
      {"avx512_bf16", zmm && bit(seven1.eax, 5)},
      {"avx512_fp16", zmm && bit(seven.edx, 23)},
      {"amx_bf16", tiles && bit(seven.edx, 22)},
      {"amx_tile", tiles && bit(seven.edx, 24)},
      {"amx_int8", tiles && bit(seven.edx, 25)},
  };
}

namespace {

// The system saves eight KiB of tiles for processes that asked, once for all their threads. It refuses where it is too old, and where a
// thread has a stack for signals that they do not fit on.
bool permits_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, the number of the register file
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// Intel's processors multiply pairs slowly. One was measured, a Xeon with AMX whose tiles were masked; the others are taken to be like it.
int pairs_isa() {
  const Leaf zero = cpuid(0, 0);
  const bool intel = zero.ebx == signature_INTEL_ebx && zero.edx == signature_INTEL_edx && zero.ecx == signature_INTEL_ecx;
  return intel ? kSlowPairsIsa : kPairsIsa;
}

int detected_isa() {
  auto has = cpu_features();
  if (!(has["avx2"] && has["fma"] && has["f16c"])) return 0;
  if (!(has["avx512f"] && has["avx512bw"] && has["avx512vl"] && has["avx512dq"])) return 1;
  if (!has["avx512_vnni"]) return 2;
  if (!(has["avx512_bf16"] && has["avx512vbmi"])) return 3;  // VBMI: all but Cooper Lake
#ifdef PAGODA_AMX
  if (has["amx_tile"] && has["amx_bf16"] && has["amx_int8"]) return kTilesIsa;
#endif
  return pairs_isa();
}

}  // namespace

#else

std::map<std::string, bool> cpu_features() { return {}; }
namespace {
int detected_isa() { return 0; }
int pairs_isa() { return 0; }
bool permits_tiles() { return false; }
}  // namespace

#endif

namespace {

const std::vector<std::string> kOrder = {"base", "avx2", "avx512", "avx512vnni", "avx512bf16", "avx512bf16slow", "amx"};

int known_isa(const std::string& isa, const char* from) {
  const auto at = std::find(kOrder.begin(), kOrder.end(), isa);
  if (at == kOrder.end())
    throw std::invalid_argument("unknown instruction set '" + isa + "'" + from +
                                "; accepted: base, avx2, avx512, avx512vnni, avx512bf16, avx512bf16slow, amx");
  return static_cast<int>(at - kOrder.begin());
}

int usable_isa() {
  const char* cap = std::getenv("PAGODA_ISA");
  const int most = cap == nullptr || *cap == 0 ? kTilesIsa : known_isa(cap, " in PAGODA_ISA");
  const int index = std::min(most, detected_isa());
  return index < kTilesIsa || permits_tiles() ? index : pairs_isa();
}

int best_index() {
  static const int best = usable_isa();
  return best;
}

}  // namespace

std::string best_isa() { return kOrder[best_index()]; }

int isa_index(const std::string& asked) {
  if (asked.empty()) return best_index();
  const int index = known_isa(asked, "");
  if (index > best_index())
    throw std::invalid_argument("instruction set '" + asked + "' is not usable here; the best is " + best_isa());
  return index;
}

}  // namespace pagoda
