// The ways to multiply: float32 numbers, pairs of bfloat16 where the processor can, tiles of pairs.
//
// All work on 32-bit words, a word being one float32 or two neighbouring bfloat16, so that packing
// is written once. A product takes kRows rows at most, and whole kKeys of keys and kWords of words;
// it may change rows up to the next kRowsAtOnce.
// With kInTurns the processor multiplies beside other work: products of some rows and the softmax
// of others take turns.
#pragma once

#include "cpu/kernels/conversions.h"
#include "cpu/kernels/linear_group.h"

namespace legokv::cpu {
namespace {

struct FloatWords {
  using Number = float;
  static constexpr int kPerWord = 1;
  static constexpr int kRows = kPanelRows;
  static constexpr int kRowsAtOnce = 1;
  static constexpr bool kInTurns = false;
  static constexpr int kKeys = kLanes;
  static constexpr int kWords = 1;

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

struct PairWords {
  using Number = bfloat16;
  static constexpr int kPerWord = 2;
  static constexpr int kRows = kPanelRows;
  static constexpr int kRowsAtOnce = 1;
  static constexpr bool kInTurns = false;
  static constexpr int kKeys = kLanes;
  static constexpr int kWords = 1;

#if defined(__AVX512BF16__)
  static Floats multiply_add(Floats sum, uint32_t a, Words b) {
    return reinterpret_cast<Floats>(
        _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                         reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a))),
                         reinterpret_cast<__m512bh>(b)));
  }
#endif

  static Words load_key_words(const bfloat16* key, [[maybe_unused]] int num_words) {
#if defined(__AVX512F__)
    const __mmask16 wanted = static_cast<__mmask16>((1u << num_words) - 1);
    return reinterpret_cast<Words>(_mm512_maskz_loadu_epi32(wanted, key));
#else
    return load_vector<Words>(key);  // head sizes are multiples of 16
#endif
  }

  static Words load_value_words(const bfloat16* const* values, int dimension) {
    return load_halves<kLanes>(values[0] + dimension) | load_halves<kLanes>(values[1] + dimension)
                                                            << 16;
  }
};

// Pairs that tiles multiply: 16 rows and columns and 32 products at once.
struct TileWords : PairWords {
  static constexpr int kRows = 2 * kTileRows;
  static constexpr int kRowsAtOnce = kTileRows;
  static constexpr bool kInTurns = true;
  static constexpr int kKeys = kStepProducts;
  static constexpr int kWords = kStepProducts / kPerWord;
};

}  // namespace
}  // namespace legokv::cpu
