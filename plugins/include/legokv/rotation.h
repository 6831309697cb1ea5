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

// An angle without its whole turns: from -3.2 to 3.2, wrong by 2^-20, for angles below 2^20. Two pi
// has two parts, for one float32 is too few digits of it.
LEGOKV_HOST_DEVICE float within_a_turn(float angle) {
  constexpr float kTwoPi = 6.28318548202514648f, kRest = -1.74845553146951715e-07f;
  constexpr float kPerTurn = 0.159154943091895336f;
  constexpr float kToWhole =
      12582912.0f;  // 1.5 * 2^23: a sum with it has no digits after the point
  const float turns = fmaf(angle, kPerTurn, kToWhole) - kToWhole;
  return fmaf(-turns, kRest, fmaf(-turns, kTwoPi, angle));
}

// The same angle, its sine and cosine wrong by 2^-20, far below what 16 bits keep of a product. On
// a GPU a tenth of the instructions.
LEGOKV_HOST_DEVICE Rotation quick_rotation_by(int position, float inv_freq) {
  const float angle = within_a_turn(static_cast<float>(position) * inv_freq);
#ifdef __CUDA_ARCH__
  return {__cosf(angle), __sinf(angle)};
#else
  return {std::cos(angle), std::sin(angle)};
#endif
}

LEGOKV_HOST_DEVICE Pair rotate(const Rotation& rotation, const Pair& pair) {
  return {pair.first * rotation.cosine - pair.second * rotation.sine,
          pair.second * rotation.cosine + pair.first * rotation.sine};
}

}  // namespace legokv
