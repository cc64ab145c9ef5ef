#define PAGODA_ISA avx512
#define PAGODA_LANES 16
#define PAGODA_DPBF16 0
#include "attention_body.hpp"
#include "linear_body.hpp"
