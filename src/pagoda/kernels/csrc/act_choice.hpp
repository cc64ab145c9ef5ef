// Which slots stay after an act of an eviction (acts.hpp): scores of what is remembered of each, and the best of them.
#pragma once

#include "acts.hpp"

namespace pagoda {

// Goes to `act.keep`, of an act that ranks slots. Pages are read, and hashes and positions written that slots had none of; nothing else is changed.
void choose(const char* pages, int64_t num_pages, const PageShape& shape, Act& act, int num_threads);

}  // namespace pagoda
