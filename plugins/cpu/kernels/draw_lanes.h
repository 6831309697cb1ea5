// Vectors of float64 for drawing: loads, comparisons, and powers exactly and nearly.
#pragma once

#include <limits>

#include "cpu/kernels/conversions.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/vectors.h"

namespace legokv::cpu {
namespace {

constexpr int kDrawLanes = kLanes / 2;
typedef double Doubles __attribute__((vector_size(kDrawLanes * 8)));
typedef int64_t Longs __attribute__((vector_size(kDrawLanes * 8)));

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kRound = 0x1.8p52;  // added, it leaves a whole number in the last bits
// Below, a weight is nothing beside the likeliest's 1.
constexpr double kLeastExponent = -708;

inline Doubles load_doubles(const double* from) { return load_vector<Doubles>(from); }

template <typename T>
inline Doubles load_doubles(const T* from) {
  return __builtin_convertvector(load_floats<kDrawLanes>(from), Doubles);
}

inline Doubles all_doubles(double value) { return value - Doubles{}; }

// Distances up to `range`, by this, are numbers of buckets. All are in the first where the range is
// nothing, or so small that no number is large enough.
inline double bucket_scale(int num_buckets, double range) {
  const double scale = (num_buckets - 1) / range;
  return range > 0 && scale < kInfinity ? scale : 0;
}

// Which lanes: a bit each.
using Bits = uint32_t;

#if defined(__AVX512F__)
inline __m512d native(Doubles a) { return reinterpret_cast<__m512d>(a); }

inline Bits at_least(Doubles a, Doubles b) {
  return _mm512_cmp_pd_mask(native(a), native(b), _CMP_GE_OQ);
}

inline Doubles only(Bits lanes, Doubles a) {
  return reinterpret_cast<Doubles>(_mm512_maskz_mov_pd(static_cast<__mmask8>(lanes), native(a)));
}

inline double sum_of_doubles(Doubles a) { return _mm512_reduce_add_pd(native(a)); }

inline double most_of_doubles(Doubles a) { return _mm512_reduce_max_pd(native(a)); }

inline Doubles larger_doubles(Doubles a, Doubles b) {
  return reinterpret_cast<Doubles>(_mm512_max_pd(native(a), native(b)));
}
#else
inline Bits at_least(Doubles a, Doubles b) {
#if defined(__AVX2__)
  return _mm256_movemask_pd(reinterpret_cast<__m256d>(a >= b));
#else
  Bits bits = 0;
  for (int i = 0; i < kDrawLanes; ++i) bits |= Bits{a[i] >= b[i]} << i;
  return bits;
#endif
}

inline Doubles only(Bits lanes, Doubles a) {
  Longs on;
  for (int i = 0; i < kDrawLanes; ++i) on[i] = -static_cast<int64_t>((lanes >> i) & 1);
  return same_bits<Doubles>(same_bits<Longs>(a) & on);
}

inline double sum_of_doubles(Doubles a) {
  double sum = 0;
  for (int i = 0; i < kDrawLanes; ++i) sum += a[i];
  return sum;
}

inline double most_of_doubles(Doubles a) {
  double most = a[0];
  for (int i = 1; i < kDrawLanes; ++i) most = a[i] > most ? a[i] : most;
  return most;
}

inline Doubles larger_doubles(Doubles a, Doubles b) { return a > b ? a : b; }
#endif

constexpr Bits kAllLanes = (Bits{1} << kDrawLanes) - 1;

// Appends the lanes that are chosen; may write kDrawLanes numbers.
inline void append(Bits lanes, Doubles a, double* to) {
#if defined(__AVX512F__)
  _mm512_storeu_pd(to, _mm512_maskz_compress_pd(static_cast<__mmask8>(lanes), native(a)));
#else
  for (int i = 0; i < kDrawLanes; ++i) {
    *to = a[i];
    to += (lanes >> i) & 1;
  }
#endif
}

// The same of their numbers: `first` and those behind it.
inline void append_ids(Bits lanes, int32_t first, int32_t* to) {
#if defined(__AVX512F__)
  const __m256i ids =
      _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm256_maskz_compress_epi32(static_cast<__mmask8>(lanes), ids));
#else
  for (int i = 0; i < kDrawLanes; ++i) {
    *to = first + i;
    to += (lanes >> i) & 1;
  }
#endif
}

// e^x for x of at most 0, to the last bit or two; 0 below kLeastExponent.
inline Doubles exponential(Doubles x) {
  constexpr double kLog2OfE = 1.4426950408889634, kHigh = 6.93147180369123816490e-01,
                   kLow = 1.90821492927058770002e-10;
  const Doubles in_range = x < kLeastExponent ? Doubles{} + kLeastExponent : x;
  const Doubles shifted = in_range * kLog2OfE + kRound;
  const Doubles whole = shifted - kRound;
  const Doubles rest = (in_range - whole * kHigh) - whole * kLow;
  // Taylor's series, of 13 powers: the rest is at most half of log(2).
  constexpr double kInverses[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880,
                                  1.0 / 40320,     1.0 / 5040,     1.0 / 720,     1.0 / 120,
                                  1.0 / 24,        1.0 / 6,        0.5,           1.0};
  Doubles sum = rest * (1.0 / 6227020800.0);
  for (const double inverse : kInverses) sum = (sum + inverse) * rest;
  sum = sum + 1.0;
  const Longs bits = same_bits<Longs>(sum) + (same_bits<Longs>(shifted) << 52);
  return x < kLeastExponent ? Doubles{} : same_bits<Doubles>(bits);
}

// 2^x for x of at most 0, wrong by at most 1e-10 of it; at most 2^-1000 below -1000.
inline Doubles near_power(Doubles x) {
  const Doubles in_range = larger_doubles(x, all_doubles(-1000));
  const Doubles shifted = in_range + kRound;
  const Doubles rest = in_range - (shifted - kRound);
  // The least largest relative error of seven powers over half a unit to either side.
  constexpr double kPowers[] = {0.00015469291049664485, 0.0013333922580708174, 0.009618027254056048,
                                0.055504103534338725,   0.24022651198153502,   0.6931471807284458,
                                0.9999999999616817};
  Doubles sum = all_doubles(1.5201916781255496e-05);
  for (const double power : kPowers) sum = sum * rest + power;
  return same_bits<Doubles>(same_bits<Longs>(sum) + (same_bits<Longs>(shifted) << 52));
}

}  // namespace
}  // namespace legokv::cpu
