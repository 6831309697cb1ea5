// Stored numbers to float32 vectors and back, rounding to nearest even.
#pragma once

#include <type_traits>

#include "cpu/kernels/vectors.h"

namespace legokv::cpu {
namespace {

template <int kCount>
using FloatsOf = typename Types<kCount>::Floats;

template <int kCount>
inline FloatsOf<kCount> load_floats(const float* from) {
  return load_vector<FloatsOf<kCount>>(from);
}

// 16-bit numbers as words of their bits.
template <int kCount>
inline typename Types<kCount>::Words load_halves(const void* from) {
  using T = Types<kCount>;
#if defined(__AVX512F__)
  // GCC 12 makes two halves of it, and joins them.
  if constexpr (kCount == 16) {
    return reinterpret_cast<typename T::Words>(_mm512_cvtepu16_epi32(load_vector<__m256i>(from)));
  }
#endif
  return __builtin_convertvector(load_vector<typename T::Halves>(from), typename T::Words);
}

template <int kCount>
inline FloatsOf<kCount> load_floats(const bfloat16* from) {
  return same_bits<FloatsOf<kCount>>(load_halves<kCount>(from) << 16);
}

template <int kCount>
inline FloatsOf<kCount> load_floats(const float16* from) {
#if defined(__AVX512F__)
  if constexpr (kCount == 16) {
    return reinterpret_cast<FloatsOf<kCount>>(_mm512_cvtph_ps(load_vector<__m256i>(from)));
  }
#endif
#if defined(__F16C__)
  if constexpr (kCount == 8) {
    return reinterpret_cast<FloatsOf<kCount>>(_mm256_cvtph_ps(load_vector<__m128i>(from)));
  }
#else
  FloatsOf<kCount> floats;
  for (int i = 0; i < kCount; ++i) floats[i] = to_float(from[i]);
  return floats;
#endif
}

template <int kCount>
inline void store_floats(float* to, FloatsOf<kCount> floats) {
  store_vector(to, floats);
}

template <int kCount>
inline void store_floats(bfloat16* to, FloatsOf<kCount> floats) {
#if defined(__AVX512BF16__)
  if constexpr (kCount == 16) {
    return store_vector(to, _mm512_cvtneps_pbh(reinterpret_cast<__m512>(floats)));
  }
#endif
  using T = Types<kCount>;
  const auto bits = same_bits<typename T::Words>(floats);
  const auto rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  // A NaN's payload must not carry over into the exponent.
  const auto kept = floats == floats ? rounded : rounded * 0 + 0x7fff;
  store_vector(to, __builtin_convertvector(kept, typename T::Halves));
}

template <int kCount>
inline void store_floats(float16* to, FloatsOf<kCount> floats) {
#if defined(__AVX512F__)
  if constexpr (kCount == 16) {
    store_vector(to, _mm512_cvtps_ph(reinterpret_cast<__m512>(floats), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
#if defined(__F16C__)
  if constexpr (kCount == 8) {
    store_vector(to, _mm256_cvtps_ph(reinterpret_cast<__m256>(floats), _MM_FROUND_TO_NEAREST_INT));
  }
#else
  for (int i = 0; i < kCount; ++i) to[i] = from_float<float16>(floats[i]);
#endif
}

// Two vectors one after the other.
template <typename T>
inline void store_pair(T* to, Floats first, Floats second) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, bfloat16>) {
    return store_vector(
        to, _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(first)));
  }
#endif
  store_floats<kLanes>(to, first);
  store_floats<kLanes>(to + kLanes, second);
}

}  // namespace
}  // namespace legokv::cpu
