#define PAGODA_ISA avx2
#define PAGODA_LANES 8
#define PAGODA_DPBF16 0
#include "attention_body.hpp"
#include "linear_body.hpp"
