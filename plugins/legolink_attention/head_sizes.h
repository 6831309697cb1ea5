// The head sizes that have kernels, as types.
#pragma once

#include <type_traits>

namespace legokv {

// Calls `visit` with the size as a std::integral_constant; the size has been checked before.
template <typename Visit>
auto with_head_size(int head_size, Visit visit) {
  switch (head_size) {
    case 64:
      return visit(std::integral_constant<int, 64>());
    case 80:
      return visit(std::integral_constant<int, 80>());
    case 96:
      return visit(std::integral_constant<int, 96>());
    default:
      return visit(std::integral_constant<int, 128>());
  }
}

}  // namespace legokv
