// Heads rotated by a token's turn, in the rotate-half convention of legokv/rotation.h.
#pragma once

#include "cpu/kernels/conversions.h"

namespace legokv::cpu {
namespace {

template <int kCount, typename From, typename To>
inline void rotate_part(const From* x, const float* turn, int half, To* out) {
  const auto cosines = load_floats<kCount>(turn), sines = load_floats<kCount>(turn + half);
  const auto first = load_floats<kCount>(x), second = load_floats<kCount>(x + half);
  store_floats<kCount>(out, first * cosines - second * sines);
  store_floats<kCount>(out + half, second * cosines + first * sines);
}

// turn: cosines [D / 2], then sines [D / 2].
template <typename From, typename To>
void rotate_head(const From* x, const float* turn, int head_size, To* out) {
  const int half = head_size / 2;
  int i = 0;
  for (; kLanes == 16 && i + kLanes <= half; i += kLanes) {
    rotate_part<kLanes>(x + i, turn + i, half, out + i);
  }
  for (; i < half; i += 8) rotate_part<8>(x + i, turn + i, half, out + i);
}

}  // namespace
}  // namespace legokv::cpu
