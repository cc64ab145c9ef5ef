// Sizes of a core's data caches. Tiles of attention and of products are cut by them, so that what a tile comes back to stays in
// the second: with M numbers of cache both read memory in proportion to 1/M. (Attention does so while M >= d^2; below that another
// scheme reads less: arXiv:2402.07443. d^2 is 4096 for heads of 64 columns, 331776 for latent pages of 576.) The bits of a result
// never depend on them.
#pragma once

#include <cstdint>
#include <string>

namespace pagoda {

// Bytes that one core may count on. Where the machine does not say: of the machine that the tiles were measured on.
struct Caches {
  int64_t first = 32 << 10, second = 1 << 20;
};

// What the system says under `root` (/sys/devices/system/cpu) of one of its CPUs. A cache of several cores counts in equal shares.
Caches read_caches(const std::string& root, int cpu);

// The smallest that a thread of this process may meet, read once; or what was assumed.
Caches caches();

// From now on `sizes` instead (tests, experiments); zeros: the machine's again. Not while kernels run.
void assume_caches(Caches sizes);

}  // namespace pagoda
