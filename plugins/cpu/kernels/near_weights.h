// Weights that are wrong by a little, of which is known how much: of float64, or in less than half
// the time of float32, and sums of them.
#pragma once

#include <cmath>

#include "cpu/kernels/block_bits.h"

namespace legokv::cpu {
namespace {

// Of a sum of float64 weights: more than near_power's error, that of adding some millions of them,
// here and by the exact way, and all weights of what is not looked at.
constexpr double kDoubt = 1e-9;
// Further below the likeliest, in units of the temperature, is not looked at: a weight of 6e-19.
constexpr double kFarthest = 42;
// Beyond, its last bit is more than the doubt.
constexpr double kFarthestOffset = 1e6;

// Halvings by which a block's weights are added as float32, each of one rounding.
constexpr int kSumHalvings = __builtin_ctz(kDrawBlock / kLanes);
// What a float32 weight's steps may be wrong by together, in such roundings: 1.75 were found.
constexpr double kWeightRoundings = 1.9;
// Of a sum of weights. What decides is the sum of some tokens less a share p of the sum of all. In
// both a weight is wrong alike, which leaves at most 2 p (1 - p) of its roundings. Those of the
// halvings may differ: 2 p of them. Where they are as many, both together are most at a p of 1.
template <typename Number>
constexpr double kDoubtOf = kDoubt;
template <>
inline constexpr double kDoubtOf<float> = kDoubt + 0x1p-24 * 2 * kSumHalvings;
static_assert(kWeightRoundings <= kSumHalvings);
// So that what a float32 is short of the unit moves no exponent far.
constexpr double kFarthestFloatOffset = 1 << 16;

#if defined(__FMA__)
constexpr bool kHasFloatWeights = true;

inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_fmadd_ps(
      reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#else
  return reinterpret_cast<Floats>(_mm256_fmadd_ps(
      reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#endif
}

inline Floats nearest_whole(Floats a) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_roundscale_ps(reinterpret_cast<__m512>(a), kNearest));
#else
  return reinterpret_cast<Floats>(_mm256_round_ps(reinterpret_cast<__m256>(a), kNearest));
#endif
}

// `a` times 2 to a whole number below 127, 0 far below 0.
inline Floats scaled(Floats a, Floats whole) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(
      _mm512_scalef_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(whole)));
#else
  const Ints exponent = __builtin_convertvector(larger(whole, all_lanes(-127)), Ints) + 127;
  return a * same_bits<Floats>(exponent << 23);
#endif
}
#else
// A product that is rounded before it is added to is wrong by more than is left of it.
constexpr bool kHasFloatWeights = false;

inline Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
inline Floats nearest_whole(Floats a) { return (a + 0x1.8p23f) - 0x1.8p23f; }
inline Floats scaled(Floats a, Floats) { return a; }
#endif

// A block's weights, added lane by lane: all that are kept, and those over a value.
struct BlockSums {
  Doubles all{};
  Doubles over{};
};

// 2^x for x of at most half a unit to either side, wrong by at most 3e-9 of it but for roundings:
// of polynomials that are 1 at 0, with float32 factors, the one of the least largest error.
inline Floats near_power_of_part(Floats x) {
  constexpr float kPowers[] = {0.0013390997f, 0.009618503f, 0.055503596f,
                               0.24022648f,   0.6931472f,   1};
  Floats sum = all_lanes(0.0001532784f);
  for (const float power : kPowers) sum = multiply_add(sum, x, all_lanes(power));
  return sum;
}

// Weights of values relative to that of the likeliest, but for a factor below 2 that all have in
// common: exponents are counted from a whole number, so that float32 takes no bit from them.
class NearWeights {
 public:
  NearWeights() = default;
  NearWeights(double most, double temperature)
      : unit_(1.4426950408889634 / temperature),
        offset_(std::nearbyint(unit_ * most)),
        high_(static_cast<float>(unit_)),
        low_(static_cast<float>(unit_ - high_)),
        least_(static_cast<float>((offset_ - 1000) / unit_)) {}

  template <typename Number>
  bool can_tell() const {
    constexpr bool kIsFloat = sizeof(Number) < 8;
    return std::abs(offset_) < (kIsFloat ? kFarthestFloatOffset : kFarthestOffset);
  }

  Doubles operator()(Doubles values) const { return near_power(values * unit_ - offset_); }

  Floats operator()(Floats values) const {
    const Floats high = all_lanes(high_), some = larger(values, all_lanes(least_));
    const Floats whole = nearest_whole(some * high);
    const Floats part = multiply_add(some, all_lanes(low_), multiply_add(some, high, -whole));
    return scaled(near_power_of_part(part), whole - static_cast<float>(offset_));
  }

 private:
  double unit_ = 0;
  double offset_ = 0;
  float high_ = 0, low_ = 0;  // together the unit
  float least_ = 0;           // below, a weight is 0 too
};

inline Doubles added(Doubles sum, Floats some) {
#if defined(__AVX512F__)
  const auto all = reinterpret_cast<__m512>(some);
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(all));
  const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(all, 1));
  return sum + reinterpret_cast<Doubles>(low) + reinterpret_cast<Doubles>(high);
#else
  using Half = Types<kDrawLanes>::Floats;
  Half halves[2];
  memcpy(halves, &some, sizeof some);
  for (const Half half : halves) sum += __builtin_convertvector(half, Doubles);
  return sum;
#endif
}

template <int kCount>
inline Floats sum_of_vectors(Floats* vectors) {
  for (int half = kCount / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) vectors[i] += vectors[i + half];
  }
  return vectors[0];
}

// Which tokens of a block are weighed: some that are at least a value.
struct Kept {
  BlockBits bits;
  float bound;
};

// Adds a block's weights, all that are kept and those of at least `high`: with kOver both, else
// only these, as all. Marks in `marks` those that are kept between `low` and `high`.
template <bool kOver, typename Number, typename Raw>
inline void add_block(const NearWeights& weights, const Raw* values, Kept kept, float high,
                      float low, BlockBits* marks, BlockSums* sums) {
  constexpr int kVectors = kDrawBlock / kLanes;
  Floats all[kVectors], above[kVectors];
  BlockBits marked = 0;
  for (int i = 0; i < kVectors; ++i) {
    const Floats some = load_floats<kLanes>(values + i * kLanes);
    const Lanes here = lanes_of(kept.bits >> (i * kLanes)) & at_least(some, all_lanes(kept.bound));
    const Lanes over = here & at_least(some, all_lanes(high));
    if (low < high)
      marked |= bits_of(here & ~over & at_least(some, all_lanes(low))) << (i * kLanes);
    if constexpr (sizeof(Number) < 8) {
      const Floats weight = weights(some);
      all[i] = chosen(kOver ? here : over, weight, Floats{});
      if (kOver) above[i] = chosen(over, weight, Floats{});
    } else {
      for (int half = 0; half < kLanes; half += kDrawLanes) {
        const Doubles weight = weights(load_doubles(values + i * kLanes + half));
        sums->all = add_lanes(sums->all, bits_of(kOver ? here : over) >> half, weight);
        if (kOver) sums->over = add_lanes(sums->over, bits_of(over) >> half, weight);
      }
    }
  }
  *marks = marked;
  if constexpr (sizeof(Number) < 8) {
    sums->all = added(sums->all, sum_of_vectors<kVectors>(all));
    if (kOver) sums->over = added(sums->over, sum_of_vectors<kVectors>(above));
  }
}

}  // namespace
}  // namespace legokv::cpu
