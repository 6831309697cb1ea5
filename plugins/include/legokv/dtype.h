// Numbers of LegokvDtype and their C++ types.
#pragma once

#include "legokv/launchers.h"
#include "legokv/numbers.h"

namespace legokv {

inline bool is_dtype(int dtype) { return dtype >= LEGOKV_FLOAT32 && dtype <= LEGOKV_BFLOAT16; }

// Calls `visit` with a value of the dtype's C++ type and returns what it returns.
template <typename Visit>
auto with_dtype(int dtype, Visit visit) {
  switch (dtype) {
    case LEGOKV_FLOAT16:
      return visit(float16());
    case LEGOKV_BFLOAT16:
      return visit(bfloat16());
    default:
      return visit(float());
  }
}

}  // namespace legokv
