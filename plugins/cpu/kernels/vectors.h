// Vectors of float32 and 32-bit words: GCC's vector types, with what they lack added.
//
// Compiled once for each instruction set; the unnamed namespace keeps every copy to its own build.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "legokv/numbers.h"

namespace legokv::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kPanelVectors = 4;  // columns of a product held in registers, in vectors
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kPanelVectors = 2;
#else
constexpr int kLanes = 4;
constexpr int kPanelVectors = 2;
#endif
constexpr int kPanelRows = 6;  // with kPanelVectors + 1 more they fill the registers
constexpr int kPanelWidth = kPanelVectors * kLanes;

template <int kCount>
struct Types {
  typedef float Floats __attribute__((vector_size(kCount * 4)));
  typedef int32_t Ints __attribute__((vector_size(kCount * 4)));
  typedef uint32_t Words __attribute__((vector_size(kCount * 4)));
  typedef uint16_t Halves __attribute__((vector_size(kCount * 2)));
};

using Floats = Types<kLanes>::Floats;
using Ints = Types<kLanes>::Ints;
using Words = Types<kLanes>::Words;

template <typename V>
inline V load_vector(const void* from) {
  V vector;
  memcpy(&vector, from, sizeof vector);
  return vector;
}

template <typename V>
inline void store_vector(void* to, V vector) {
  memcpy(to, &vector, sizeof vector);
}

template <typename To, typename From>
inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

inline Floats all_lanes(float value) { return value - Floats{}; }

// The second where either is not a number.
inline Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(
      _mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#else
  return a > b ? a : b;
#endif
}

inline float largest_lane(Floats vector) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(reinterpret_cast<__m512>(vector));
#else
  float largest = vector[0];
  for (int i = 1; i < kLanes; ++i) largest = vector[i] > largest ? vector[i] : largest;
  return largest;
#endif
}

inline bool any_above(Floats vector, float bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(vector), _mm512_set1_ps(bound), _CMP_GT_OQ);
#elif defined(__AVX2__)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(vector > all_lanes(bound)));
#else
  bool any = false;
  for (int i = 0; i < kLanes; ++i) any |= vector[i] > bound;
  return any;
#endif
}

inline float sum_of_lanes(Floats vector) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += vector[i];
  return sum;
}

}  // namespace
}  // namespace legokv::cpu
