// Stored numbers to float32 vectors and back, rounding to nearest even.
#pragma once

#include "cpu/kernels/vectors.h"

namespace legokv::cpu {
namespace {

template <int kCount>
using FloatsOf = typename Types<kCount>::Floats;

template <int kCount>
inline FloatsOf<kCount> load_floats(const float* from) {
  return load_vector<FloatsOf<kCount>>(from);
}

template <int kCount>
inline FloatsOf<kCount> load_floats(const bfloat16* from) {
  using T = Types<kCount>;
  const auto halves = load_vector<typename T::Halves>(from);
  return same_bits<FloatsOf<kCount>>(__builtin_convertvector(halves, typename T::Words) << 16);
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

}  // namespace
}  // namespace legokv::cpu
