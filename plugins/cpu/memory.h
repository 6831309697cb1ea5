// Aligned memory that nobody has written to yet.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace legokv::cpu {

struct FreeMemory {
  void operator()(void* memory) const { std::free(memory); }
};

template <typename T>
using Array = std::unique_ptr<T[], FreeMemory>;

// 64-aligned; std::bad_alloc if there is no memory.
template <typename T>
Array<T> uninitialised(int64_t count) {
  const int64_t bytes = (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  void* memory = std::aligned_alloc(64, static_cast<size_t>(bytes > 0 ? bytes : 64));
  if (memory == nullptr) throw std::bad_alloc();
  return Array<T>(static_cast<T*>(memory));
}

}  // namespace legokv::cpu
