// The gate of a gated MLP: silu(gate) * up, element by element, whatever stands beside it.
#pragma once

#include "cpu/kernels/conversions.h"
#include "cpu/kernels/exponential.h"

namespace legokv::cpu {
namespace {

constexpr float kMinusLog2OfE = -1.44269504f;

inline Floats silu(Floats x) {
  const Floats exponent = x * kMinusLog2OfE;
  // Above, the power is no float; what is not a number stays so.
  const Floats most = all_lanes(126.0f);
  return x / (1.0f + exp2_of<float>(most < exponent ? most : exponent));
}

// kLanes elements. Rounded before the product, as the model's definition does.
template <typename T>
inline void gate_vector(const T* gate, const T* up, T* out) {
  T rounded[kLanes];
  store_floats<kLanes>(rounded, silu(load_floats<kLanes>(gate)));
  store_floats<kLanes>(out, load_floats<kLanes>(rounded) * load_floats<kLanes>(up));
}

// x: gates [columns], then ups [columns].
template <typename T>
void gate_row(const void* x, int num_columns, void* out) {
  const T* gate = static_cast<const T*>(x);
  const T* up = gate + num_columns;
  T* to = static_cast<T*>(out);
  int i = 0;
  for (; i + kLanes <= num_columns; i += kLanes) gate_vector(gate + i, up + i, to + i);
  if (i == num_columns) return;
  T last_gate[kLanes] = {}, last_up[kLanes] = {}, last[kLanes];
  const size_t bytes = sizeof(T) * (num_columns - i);
  memcpy(last_gate, gate + i, bytes);
  memcpy(last_up, up + i, bytes);
  gate_vector(last_gate, last_up, last);
  memcpy(to + i, last, bytes);
}

}  // namespace
}  // namespace legokv::cpu
