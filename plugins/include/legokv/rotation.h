// Rotary embedding in the rotate-half convention: dimension i turns with dimension i + D/2.
#pragma once

#include <cmath>

#include "legokv/host_device.h"

namespace legokv {

struct Rotation {
  float cosine;
  float sine;
};

struct Pair {
  float first;   // dimension i
  float second;  // dimension i + D/2
};

// The angle is a float32 product, as in the torch op: the same rounding, so the same angle.
LEGOKV_HOST_DEVICE Rotation rotation_by(int position, float inv_freq) {
  const float angle = static_cast<float>(position) * inv_freq;
  Rotation rotation;
#ifdef __CUDA_ARCH__
  sincosf(angle, &rotation.sine, &rotation.cosine);
#else
  rotation.sine = std::sin(angle);
  rotation.cosine = std::cos(angle);
#endif
  return rotation;
}

LEGOKV_HOST_DEVICE Pair rotate(const Rotation& rotation, const Pair& pair) {
  return {pair.first * rotation.cosine - pair.second * rotation.sine,
          pair.second * rotation.cosine + pair.first * rotation.sine};
}

}  // namespace legokv
