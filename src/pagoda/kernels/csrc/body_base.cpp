#define PAGODA_ISA base
#define PAGODA_LANES 4
#define PAGODA_DPBF16 0
#include "attention_body.hpp"
#include "linear_body.hpp"
