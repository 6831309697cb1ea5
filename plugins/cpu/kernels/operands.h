// The two ways to multiply: float32 numbers, or pairs of bfloat16 where the processor can.
//
// Both work on 32-bit words, a word being one float32 or two neighbouring bfloat16, so that
// packing and the product are written once.
#pragma once

#include "cpu/kernels/conversions.h"

namespace legokv::cpu {
namespace {

struct FloatWords {
  using Number = float;
  static constexpr int kPerWord = 1;

  static Floats multiply_add(Floats sum, uint32_t a, Words b) {
    float number;
    memcpy(&number, &a, sizeof number);
    return sum + number * same_bits<Floats>(b);
  }

  // The next words of a key: `num_words` of them, kLanes at most.
  template <typename T>
  static Words load_key_words(const T* key, int /* num_words: head sizes are multiples of 16 */) {
    return same_bits<Words>(load_floats<kLanes>(key));
  }

  // The values of kPerWord keys at kLanes dimensions, as a word a dimension.
  template <typename T>
  static Words load_value_words(const T* const* values, int dimension) {
    return same_bits<Words>(load_floats<kLanes>(values[0] + dimension));
  }
};

#if defined(__AVX512BF16__)
struct PairWords {
  using Number = bfloat16;
  static constexpr int kPerWord = 2;

  static Floats multiply_add(Floats sum, uint32_t a, Words b) {
    return reinterpret_cast<Floats>(
        _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                         reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a))),
                         reinterpret_cast<__m512bh>(b)));
  }

  static Words load_key_words(const bfloat16* key, int num_words) {
    const __mmask16 wanted = static_cast<__mmask16>((1u << num_words) - 1);
    return reinterpret_cast<Words>(_mm512_maskz_loadu_epi32(wanted, key));
  }

  static Words load_value_words(const bfloat16* const* values, int dimension) {
    const __m512i first = _mm512_cvtepu16_epi32(load_vector<__m256i>(values[0] + dimension));
    const __m512i second = _mm512_cvtepu16_epi32(load_vector<__m256i>(values[1] + dimension));
    return reinterpret_cast<Words>(_mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
  }
};
#endif

}  // namespace
}  // namespace legokv::cpu
