// Powers of two, as exact as the type that keeps them.
#pragma once

#include "cpu/kernels/vectors.h"

namespace legokv::cpu {
namespace {

// 2 to the x on [-1/2, 1/2] by minimax polynomials. For float32: 8e-8 of relative error, as much as
// its rounding. For 16-bit types: 8e-5, a sixth of float16's rounding.
template <typename Kept>
inline Floats exp2_of_part(Floats x) {
  if constexpr (sizeof(Kept) == 2) {
    Floats power = all_lanes(5.51716237e-2f);
    power = power * x + 2.42611119e-1f;
    power = power * x + 6.93260994e-1f;
    return power * x + 9.99928074e-1f;
  } else {
    Floats power = all_lanes(1.3276465e-3f);
    power = power * x + 9.6753408e-3f;
    power = power * x + 5.5507133e-2f;
    power = power * x + 2.40221197e-1f;
    power = power * x + 6.93146967e-1f;
    return power * x + 1.00000007f;
  }
}

// 2 to the x for x below 1 that any Kept can hold, 0 far below 0. What is not a number stays so.
template <typename Kept>
inline Floats exp2_of(Floats x) {
#if defined(__AVX512F__)
  const __m512 whole = _mm512_roundscale_ps(reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT);
  const Floats power = exp2_of_part<Kept>(x - reinterpret_cast<Floats>(whole));
  return reinterpret_cast<Floats>(_mm512_scalef_ps(reinterpret_cast<__m512>(power), whole));
#else
  const Floats rounder = all_lanes(0x1.8p23f);  // adding it leaves the nearest whole number
  x = larger(all_lanes(-127.0f), x);            // whose power is made of bits: 0 for -127
  const Floats shifted = x + rounder;
  const Floats power = exp2_of_part<Kept>(x - (shifted - rounder));
  const Ints exponent = (same_bits<Ints>(shifted) - same_bits<Ints>(rounder) + 127) << 23;
  return power * same_bits<Floats>(exponent);
#endif
}

}  // namespace
}  // namespace legokv::cpu
