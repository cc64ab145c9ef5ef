// Which compiled body runs: the best of this machine, or the one that a test asks for.
#pragma once

#include <string>

namespace pagoda {

// Index into {base, avx2, avx512, avx512bf16}; "" is the best. Throws std::invalid_argument for an unknown or unusable one.
int isa_index(const std::string& asked);

// The body for `asked` out of those compiled.
template <typename Body>
Body choose_body(const std::string& asked, [[maybe_unused]] Body base, [[maybe_unused]] Body avx2,
                 [[maybe_unused]] Body avx512, [[maybe_unused]] Body avx512bf16) {
  const Body bodies[] = {base, avx2, avx512, avx512bf16};
  return bodies[isa_index(asked)];
}

}  // namespace pagoda

#ifdef PAGODA_X86
#define PAGODA_BODY(asked, name) \
  ::pagoda::choose_body(asked, &base::name, &avx2::name, &avx512::name, &avx512bf16::name)
#else
#define PAGODA_BODY(asked, name) ::pagoda::choose_body(asked, &base::name, &base::name, &base::name, &base::name)
#endif
