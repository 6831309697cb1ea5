// Addresses that kernels load and store 16 bytes at a time.
#pragma once

#include <cstdint>

namespace legokv {

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

}  // namespace legokv
