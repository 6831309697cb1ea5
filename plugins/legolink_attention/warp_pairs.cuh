// A head spread over a warp's lanes: loaded, rotated and multiplied by another.
#pragma once

#include "legokv/device.h"
#include "legokv/dtype.h"
#include "legokv/rotation.h"

namespace legokv {
namespace {

constexpr int kLanes = 32;
constexpr int kMaxPairs = 2;  // of dimensions i and i + D/2 for one lane: D is 128 at most

LEGOKV_DEVICE float sum_of_warp(float value) {
  for (int mask = kLanes / 2; mask > 0; mask /= 2) value += device::shuffle_xor(value, mask);
  return value;
}

// The lane's pairs of a head's dimensions; a lane past D/2 has zeros.
template <typename T>
LEGOKV_DEVICE void load_pairs(Pair (&pairs)[kMaxPairs], const T* head, int half) {
  for (int i = 0; i < kMaxPairs; ++i) {
    const int pair = device::thread_index() + i * kLanes;
    pairs[i] = pair < half ? Pair{to_float(head[pair]), to_float(head[pair + half])} : Pair{0, 0};
  }
}

LEGOKV_DEVICE void rotate_pairs(Pair (&rotated)[kMaxPairs], const Pair (&pairs)[kMaxPairs],
                                const float* inv_freq, int half, int position) {
  for (int i = 0; i < kMaxPairs; ++i) {
    const int pair = device::thread_index() + i * kLanes;
    rotated[i] = pair < half ? rotate(rotation_by(position, inv_freq[pair]), pairs[i]) : pairs[i];
  }
}

// The product of two heads, in all lanes.
LEGOKV_DEVICE float product_of_warp(const Pair (&a)[kMaxPairs], const Pair (&b)[kMaxPairs]) {
  float dot = 0;
  for (int i = 0; i < kMaxPairs; ++i) dot += a[i].first * b[i].first + a[i].second * b[i].second;
  return sum_of_warp(dot);
}

}  // namespace
}  // namespace legokv
