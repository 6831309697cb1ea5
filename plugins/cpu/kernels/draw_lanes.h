// Vectors of float64 for drawing: loads, sums, and powers exactly and nearly.
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

inline Doubles only(Longs lanes, Doubles a) {
  return same_bits<Doubles>(same_bits<Longs>(a) & lanes);
}

inline bool any_lane(Longs lanes) {
#if defined(__AVX512F__)
  const auto all = reinterpret_cast<__m512i>(lanes);
  return _mm512_test_epi64_mask(all, all) != 0;
#else
  int64_t any = 0;
  for (int i = 0; i < kDrawLanes; ++i) any |= lanes[i];
  return any != 0;
#endif
}

// Distances up to `range`, by this, are numbers of buckets. All are in the first where the range is
// nothing, or so small that no number is large enough.
inline double bucket_scale(int num_buckets, double range) {
  const double scale = (num_buckets - 1) / range;
  return range > 0 && scale < kInfinity ? scale : 0;
}

// Which tokens of a block, or of some lanes of it: a bit each, from the lowest.
using BlockBits = uint64_t;

#if defined(__AVX512F__)
inline __m512d native(Doubles a) { return reinterpret_cast<__m512d>(a); }

// sum + a in the lanes that are chosen.
inline Doubles add_lanes(Doubles sum, BlockBits lanes, Doubles a) {
  const auto mask = static_cast<__mmask8>(lanes);
  return reinterpret_cast<Doubles>(_mm512_mask_add_pd(native(sum), mask, native(sum), native(a)));
}

inline double sum_of_doubles(Doubles a) { return _mm512_reduce_add_pd(native(a)); }

inline double most_of_doubles(Doubles a) { return _mm512_reduce_max_pd(native(a)); }

inline Doubles larger_doubles(Doubles a, Doubles b) {
  return reinterpret_cast<Doubles>(_mm512_max_pd(native(a), native(b)));
}
#else
inline Doubles add_lanes(Doubles sum, BlockBits lanes, Doubles a) {
  Longs lane;
  for (int i = 0; i < kDrawLanes; ++i) lane[i] = 1 << i;
  const Longs on = ((static_cast<int64_t>(lanes) - Longs{}) & lane) != 0;
  return sum + only(on, a);
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

// 2^x for x of at most 1, wrong by at most 1e-10 of it; at most 2^-1000 below -1000, of -infinity
// too. The polynomials have the least largest relative error of seven powers.
inline Doubles near_power(Doubles x) {
#if defined(__AVX512DQ__)
  // Of what x is above the whole number below it, which scalef takes it for.
  constexpr int kFloor = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  constexpr double kPowers[] = {0.00014352313506426728, 0.0013422634899094492, 0.009614017006569922,
                                0.05550512686150252,    0.2402263846176581,    0.6931471860839103,
                                0.999999999959789};
  const auto rest = reinterpret_cast<Doubles>(_mm512_reduce_pd(native(x), kFloor));
  Doubles sum = all_doubles(2.149876517442847e-05);
  for (const double power : kPowers) sum = sum * rest + power;
  return reinterpret_cast<Doubles>(_mm512_scalef_pd(native(sum), native(x)));
#else
  const Doubles in_range = larger_doubles(x, all_doubles(-1000));
  const Doubles shifted = in_range + kRound;
  const Doubles rest = in_range - (shifted - kRound);
  // Of half a unit to either side.
  constexpr double kPowers[] = {0.00015469291049664485, 0.0013333922580708174, 0.009618027254056048,
                                0.055504103534338725,   0.24022651198153502,   0.6931471807284458,
                                0.9999999999616817};
  Doubles sum = all_doubles(1.5201916781255496e-05);
  for (const double power : kPowers) sum = sum * rest + power;
  return same_bits<Doubles>(same_bits<Longs>(sum) + (same_bits<Longs>(shifted) << 52));
#endif
}

}  // namespace
}  // namespace legokv::cpu
