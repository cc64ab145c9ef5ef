#pragma once

#include <cstdint>

namespace pagoda {

enum class Dtype : int32_t { f32 = 0, bf16 = 1, f16 = 2 };

inline int64_t size_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

}  // namespace pagoda
