// Which tokens of a block of logits: a bit each.
#pragma once

#include <cmath>
#include <limits>

#include "cpu/kernels/draw_lanes.h"

namespace legokv::cpu {
namespace {

static_assert(kDrawBlock == 64);
constexpr BlockBits kAllBits = ~BlockBits{0};

// The first `count` of them, of at most all.
constexpr BlockBits first_bits(int64_t count) {
  return count >= kDrawBlock ? kAllBits : (BlockBits{1} << count) - 1;
}

// The least float32 that is at least the bound: a float32 is at least one where it is the other.
inline float least_float(double bound) {
  const auto nearest = static_cast<float>(bound);
  constexpr float kFar = std::numeric_limits<float>::infinity();
  return nearest < bound ? std::nextafter(nearest, kFar) : nearest;
}

// Some lanes of a vector of float32: bits, or all bits of these lanes.
#if defined(__AVX512F__)
using Lanes = __mmask16;

inline Lanes at_least(Floats a, Floats b) {
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_GE_OQ);
}

inline Lanes lanes_of(BlockBits bits) { return static_cast<Lanes>(bits); }

inline BlockBits bits_of(Lanes lanes) { return lanes; }

inline Floats chosen(Lanes lanes, Floats values, Floats others) {
  return reinterpret_cast<Floats>(_mm512_mask_mov_ps(reinterpret_cast<__m512>(others), lanes,
                                                     reinterpret_cast<__m512>(values)));
}
#else
using Lanes = Ints;

inline Lanes at_least(Floats a, Floats b) { return a >= b; }

inline Lanes lanes_of(BlockBits bits) {
  Ints lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = 1 << i;
  return ((static_cast<int32_t>(bits & ((1 << kLanes) - 1)) - Ints{}) & lane) != 0;
}

inline BlockBits bits_of(Lanes lanes) {
#if defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(lanes)));
#else
  BlockBits bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<BlockBits>(lanes[i] & 1) << i;
  return bits;
#endif
}

inline Floats chosen(Lanes lanes, Floats values, Floats others) { return lanes ? values : others; }
#endif

inline BlockBits floats_at_least(Floats a, Floats b) { return bits_of(at_least(a, b)); }

template <typename Raw>
inline BlockBits block_at_least(const Raw* values, float bound) {
  BlockBits bits = 0;
  for (int i = 0; i < kDrawBlock; i += kLanes) {
    bits |= floats_at_least(load_floats<kLanes>(values + i), all_lanes(bound)) << i;
  }
  return bits;
}

// Those of 64 bytes that are not 0 but 1.
inline BlockBits bits_of_bytes(const uint8_t* bytes) {
#if defined(__AVX512BW__)
  const __m512i all = load_vector<__m512i>(bytes);
  return _mm512_test_epi8_mask(all, all);
#else
  BlockBits bits = 0;
  for (int i = 0; i < kDrawBlock; i += 8) {
    // The lowest bits of eight bytes, gathered in the highest byte.
    bits |= ((load_vector<uint64_t>(bytes + i) * 0x0102040810204080) >> 56) << i;
  }
  return bits;
#endif
}

// The values of these tokens, and -infinity for the others.
inline Floats floats_of(BlockBits lanes, Floats values) {
  return chosen(lanes_of(lanes), values, all_lanes(-std::numeric_limits<float>::infinity()));
}

// Writes the numbers of the tokens behind `first`; may write four more. How many there are.
inline int append_numbers(BlockBits bits, int32_t first, int32_t* to) {
  const int count = __builtin_popcountll(bits);
  // Mostly there are few, and a loop that ends here and there would be foretold wrongly.
  int done = 0;
  do {
    for (int i = 0; i < 4; ++i) {
      to[done++] = first + __builtin_ctzll(bits | BlockBits{1} << 63);
      bits &= bits - 1;
    }
  } while (done < count);
  return count;
}

}  // namespace
}  // namespace legokv::cpu
