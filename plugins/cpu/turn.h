// The turn of a head by a position, as the kernels read it.
#pragma once

#include "legokv/rotation.h"

namespace legokv::cpu {

// Writes cosines [half], then sines [half].
inline void write_turn(int position, const float* inv_freq, int half, float* turn) {
  for (int i = 0; i < half; ++i) {
    const Rotation rotation = rotation_by(position, inv_freq[i]);
    turn[i] = rotation.cosine;
    turn[half + i] = rotation.sine;
  }
}

}  // namespace legokv::cpu
