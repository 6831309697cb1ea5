// 16-bit floats as bits, and their conversions: round to nearest even, on the host and the device.
#pragma once

#include <cstdint>
#include <cstring>

#include "legokv/host_device.h"

namespace legokv {

struct float16 {
  uint16_t bits;
};

struct bfloat16 {
  uint16_t bits;
};

// 16 bytes of T, moved by one load or store.
template <typename T, int kCount = 16 / sizeof(T)>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Vector {
  static constexpr int kSize = kCount;
  T values[kCount];
};

LEGOKV_HOST_DEVICE uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

LEGOKV_HOST_DEVICE float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

LEGOKV_HOST_DEVICE float to_float(float value) { return value; }

LEGOKV_HOST_DEVICE float to_float(bfloat16 value) {
  return float_of_bits(uint32_t{value.bits} << 16);
}

LEGOKV_HOST_DEVICE float to_float(float16 value) {
#ifdef __CUDA_ARCH__
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const uint32_t exponent = (value.bits >> 10) & 31u, mantissa = value.bits & 1023u;
  if (exponent == 31) return float_of_bits(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return float_of_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float subnormal = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -subnormal : subnormal;
#endif
}

template <typename T>
LEGOKV_HOST_DEVICE T from_float(float value);

template <>
LEGOKV_HOST_DEVICE float from_float<float>(float value) {
  return value;
}

template <>
LEGOKV_HOST_DEVICE bfloat16 from_float<bfloat16>(float value) {
#ifdef __CUDA_ARCH__
  bfloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#else
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
#endif
}

template <>
LEGOKV_HOST_DEVICE float16 from_float<float16>(float value) {
#ifdef __CUDA_ARCH__
  float16 result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#else
  const uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  if (magnitude > 0x7f800000u) return {0x7fff};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {  // Below 2^-14: adding 1/2 rounds at 2^-24, float16's last place.
    const float rounded = float_of_bits(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (float_bits(rounded) - 0x3f000000u))};
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return {static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13))};
#endif
}

// Two neighbours in one register, the first in the low half, as mma.sync wants them.
template <typename T>
LEGOKV_HOST_DEVICE uint32_t pack_pair(float first, float second) {
  return uint32_t{from_float<T>(first).bits} | (uint32_t{from_float<T>(second).bits} << 16);
}

template <typename T>
LEGOKV_HOST_DEVICE float low_of_pair(uint32_t pair) {
  return to_float(T{static_cast<uint16_t>(pair & 0xffffu)});
}

template <typename T>
LEGOKV_HOST_DEVICE float high_of_pair(uint32_t pair) {
  return to_float(T{static_cast<uint16_t>(pair >> 16)});
}

}  // namespace legokv
