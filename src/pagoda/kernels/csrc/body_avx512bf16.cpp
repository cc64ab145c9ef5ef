#define PAGODA_ISA avx512bf16
#define PAGODA_LANES 16
#define PAGODA_DPBF16 1
#include "attention_body.hpp"
#include "linear_body.hpp"
