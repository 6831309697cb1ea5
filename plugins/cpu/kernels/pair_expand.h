// A step of weights in few bits made bfloat16 in registers, 32 numbers at a time.
//
// What comes is in an order of its own: numbers are told apart within a register's four parts, so
// that nothing crosses them. A sum over products is there in its column's place of that order.
#pragma once

#include <immintrin.h>

#include "cpu/kernels/conversions.h"
#include "cpu/kernels/linear_group.h"

namespace legokv::cpu {
namespace {

// Steps that are asked of memory before they are expanded.
constexpr int kPairStepsAhead = 8;

// Numbers are so many times what they are until they meet a scale.
constexpr float kNumberUnit = 0x1p24f;

// A tile's scales, each twice: of the two halves of the columns in the registers' order. They are
// larger than they should be by at most 2^-22 of it. A product has 19 bits: so it moves past no
// other one, but halfway between two bfloat16 numbers it goes away from zero.
class PairScales {
 public:
  explicit PairScales(const float16* of) {
    const __m512i kFirst = _mm512_set_epi32(13, 13, 12, 12, 9, 9, 8, 8, 5, 5, 4, 4, 1, 1, 0, 0);
    const __m512i kSecond = _mm512_add_epi32(kFirst, _mm512_set1_epi32(2));
    const __m512 larger = _mm512_set1_ps((1 + 0x1p-23f) / kNumberUnit);
    const __m512 scales = _mm512_mul_ps(_mm512_cvtph_ps(load_vector<__m256i>(of)), larger);
    first_ = _mm512_permutexvar_ps(kFirst, scales);
    second_ = _mm512_permutexvar_ps(kSecond, scales);
  }

  Words products(__m512 first, __m512 second) const {
    return reinterpret_cast<Words>(
        _mm512_cvtne2ps_pbh(_mm512_mul_ps(second, second_), _mm512_mul_ps(first, first_)));
  }

 private:
  __m512 first_, second_;
};

// The numbers of 64 bytes, 32 a vector: of columns 0, 1, 4, 5, 8 and so on, then of the others.
template <int kBits>
class PairNumbers;

template <>
class PairNumbers<8> {
 public:
  static constexpr int kVectors = 2;

  // With signs, without what was added to the numbers.
  explicit PairNumbers(const uint8_t* bytes)
      : bytes_(_mm512_xor_si512(load_vector<__m512i>(bytes), _mm512_set1_epi8(-128))) {}

  template <int kVector>
  Words weights(const PairScales& scales) const {
    return scales.products(floats<8 * kVector>(), floats<8 * kVector + 4>());
  }

 private:
  // Four neighbours of each 16 bytes, each the highest byte of an integer.
  template <int kByte>
  __m512 floats() const {
    const __m512i places = _mm512_set4_epi32(highest(kByte + 3), highest(kByte + 2),
                                             highest(kByte + 1), highest(kByte));
    return _mm512_cvtepi32_ps(_mm512_shuffle_epi8(bytes_, places));
  }

  // What shuffles a byte there, and zeros below.
  static constexpr int highest(int byte) { return byte << 24 | 0x808080; }

  __m512i bytes_;
};

template <>
class PairNumbers<4> {
 public:
  static constexpr int kVectors = 4;

  explicit PairNumbers(const uint8_t* bytes) {
    const auto words = load_vector<__m512i>(bytes);
    first_ = _mm512_shuffle_epi32(words, _MM_PERM_BBAA);
    second_ = _mm512_shuffle_epi32(words, _MM_PERM_DDCC);
  }

  template <int kVector>
  Words weights(const PairScales& scales) const {
    return scales.products(floats<kVector>(first_), floats<kVector>(second_));
  }

 private:
  // Looked up by the lowest four bits.
  template <int kVector>
  static __m512 floats(__m512i words) {
    constexpr int kDown = 4 * kVector;
    const __m512i down = _mm512_set4_epi32(kDown + 16, kDown, kDown + 16, kDown);
    const __m512 ones = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
    const __m512 numbers = _mm512_mul_ps(ones, _mm512_set1_ps(kNumberUnit));
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(words, down), numbers);
  }

  __m512i first_, second_;
};

// Columns in their own order: neighbours stay together.
inline __m512i in_order(__m512i pairs) {
  return _mm512_permutexvar_epi64(_mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0), pairs);
}

struct PairExpand {
  template <int kBits>
  static void ask_for_later(const BlockStep<kBits>* from) {
    const auto* later = reinterpret_cast<const char*>(from + kPairStepsAhead * 8 / kBits);
#pragma GCC unroll 17
    for (size_t at = 0; at < sizeof *from; at += 64) __builtin_prefetch(later + at, 0, 3);
  }

  template <bool kLower, int kBits>
  static void step(const BlockStep<kBits>* from, bfloat16* to) {
    static_assert(!kLower, "rows are not raised");
    constexpr int kTileBytes = kStepElements / 2 * kBits / 8;
    ask_for_later(from);
    for (int tile = 0; tile < 2; ++tile) {
      const PairScales scales(from->scales + tile * kTileColumns);
#pragma GCC unroll 8
      for (int at = tile * kTileBytes; at < (tile + 1) * kTileBytes; at += 64) {
        const PairNumbers<kBits> numbers(from->bytes + at);
        to = store<0>(scales, numbers, to);
      }
    }
  }

 private:
  template <int kVector, typename Numbers>
  static bfloat16* store(const PairScales& scales, const Numbers& numbers, bfloat16* to) {
    const Words weights = numbers.template weights<kVector>(scales);
    store_vector(to, in_order(reinterpret_cast<__m512i>(weights)));
    if constexpr (kVector + 1 < Numbers::kVectors) {
      return store<kVector + 1>(scales, numbers, to + 32);
    }
    return to + 32;
  }
};

}  // namespace
}  // namespace legokv::cpu
