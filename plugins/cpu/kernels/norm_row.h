// A row's RMSNorm, and the sum of two rows: element by element but for one sum in a fixed order.
#pragma once

#include <cmath>

#include "cpu/kernels/conversions.h"

namespace legokv::cpu {
namespace {

// Calls body(i, count) for vectors of kLanes elements, the last of which may have fewer.
template <typename Body>
inline void for_vectors(int num_columns, const Body& body) {
  int i = 0;
  for (; i + kLanes <= num_columns; i += kLanes) body(i, kLanes);
  if (i < num_columns) body(i, num_columns - i);
}

// Zeros past the `count`-th.
template <typename T>
inline Floats load_some(const T* from, int count) {
  if (count == kLanes) return load_floats<kLanes>(from);
  T some[kLanes] = {};
  memcpy(some, from, sizeof(T) * count);
  return load_floats<kLanes>(some);
}

template <typename T>
inline void store_some(T* to, Floats floats, int count) {
  if (count == kLanes) return store_floats<kLanes>(to, floats);
  T some[kLanes];
  store_floats<kLanes>(some, floats);
  memcpy(to, some, sizeof(T) * count);
}

// In the type of the numbers, as the model's definition rounds.
template <typename T>
inline Floats rounded(Floats floats) {
  T stored[kLanes];
  store_floats<kLanes>(stored, floats);
  return load_floats<kLanes>(stored);
}

template <typename T>
void norm_row(const void* x, const void* weight, float eps, int num_columns, void* out) {
  const T* from = static_cast<const T*>(x);
  const T* by = static_cast<const T*>(weight);
  T* to = static_cast<T*>(out);
  Floats squares{};
  for_vectors(num_columns, [&](int i, int count) {
    const Floats numbers = load_some(from + i, count);
    squares += numbers * numbers;
  });
  const float mean = sum_of_lanes(squares) / static_cast<float>(num_columns);
  const float scale = 1 / std::sqrt(mean + eps);
  for_vectors(num_columns, [&](int i, int count) {
    const Floats scaled = rounded<T>(load_some(from + i, count) * scale);
    store_some(to + i, load_some(by + i, count) * scaled, count);
  });
}

// Adds a row to `out`.
template <typename T>
void add_row(const void* row, int num_columns, void* out) {
  const T* from = static_cast<const T*>(row);
  T* to = static_cast<T*>(out);
  for_vectors(num_columns, [&](int i, int count) {
    store_some(to + i, load_some(from + i, count) + load_some(to + i, count), count);
  });
}

}  // namespace
}  // namespace legokv::cpu
