// A step of weights in few bits made bfloat16, 32 numbers at a time.
//
// A number is a float16, its product with the scale is cut to a float16's 11 bits, and these are
// rounded to bfloat16's 8 while they move to their place: five operations for 32 numbers, with no
// float32 between.
#pragma once

#include <immintrin.h>

#include "cpu/kernels/conversions.h"
#include "cpu/kernels/linear_group.h"

namespace legokv::cpu {
namespace {

// Scales are multiplied by 2^kScaleRaise, so that the least, 2^-24, is a normal float16 number. A
// float16's bits, three places down, are a bfloat16 whose exponent's 15 is taken for one of 127. So
// a lowered weight is 2^-kLowered times the weight.
constexpr int kScaleRaise = 10;
constexpr int kLowered = 127 - 15 - kScaleRaise;

// Steps that are asked of memory, and of the second cache, before they are expanded.
constexpr int kStepsFromMemory = 16;
constexpr int kStepsFromCache = 2;

// The numbers of 64 bytes, 32 a vector: as integers, and as float16.
template <int kBits>
struct Numbers;

template <>
struct Numbers<8> {
  static constexpr int kVectors = 2;

  template <int kVector>
  static __m512i spread(__m512i bytes, __m512i above) {
    return kVector == 0 ? _mm512_unpacklo_epi8(bytes, above) : _mm512_unpackhi_epi8(bytes, above);
  }

  template <int kVector>
  static __m512i integers(__m512i bytes) {
    return _mm512_sub_epi16(spread<kVector>(bytes, _mm512_setzero_si512()), _mm512_set1_epi16(128));
  }

#if defined(__AVX512FP16__)
  // 0x64 above a byte is 1024 + byte.
  template <int kVector>
  static __m512h halves(__m512i bytes) {
    return _mm512_sub_ph(_mm512_castsi512_ph(spread<kVector>(bytes, _mm512_set1_epi8(0x64))),
                         _mm512_set1_ph(1024 + 128));
  }
#endif
};

template <>
struct Numbers<4> {
  static constexpr int kVectors = 4;

  template <int kVector>
  static __m512i integers(__m512i words) {
    const __m512i nibbles = _mm512_and_si512(down<kVector>(words), _mm512_set1_epi16(15));
    return _mm512_sub_epi16(nibbles, _mm512_set1_epi16(8));
  }

#if defined(__AVX512FP16__)
  // Looked up by five bits, of which the fifth is a neighbour's: each number is there twice.
  template <int kVector>
  static __m512h halves(__m512i words) {
    constexpr int16_t kNumbers[] = {-0x3800, -0x3900, -0x3a00, -0x3b00, -0x3c00, -0x3e00,
                                    -0x4000, -0x4400, 0,       0x3c00,  0x4000,  0x4200,
                                    0x4400,  0x4500,  0x4600,  0x4700};
    const __m512i twice = _mm512_broadcast_i64x4(load_vector<__m256i>(kNumbers));
    return _mm512_castsi512_ph(_mm512_permutexvar_epi16(down<kVector>(words), twice));
  }
#endif

 private:
  template <int kVector>
  static __m512i down(__m512i words) {
    return kVector == 0 ? words : _mm512_srli_epi16(words, 4 * kVector);
  }
};

// By float32: for any scale.
template <bool kLower>
class WideProducts {
 public:
  explicit WideProducts(const float16* of) {
    const __m512i kLow = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    const __m512i kHigh = _mm512_add_epi32(kLow, _mm512_set1_epi32(8));
    const __m512 lowered = _mm512_castsi512_ps(_mm512_set1_epi32((127 - kLowered) << 23));
    __m512 scales = _mm512_cvtph_ps(load_vector<__m256i>(of));
    if constexpr (kLower) scales = _mm512_mul_ps(scales, lowered);
    low_ = _mm512_permutexvar_ps(kLow, scales);
    high_ = _mm512_permutexvar_ps(kHigh, scales);
  }

  template <typename Of, int kVector>
  __m512i of(__m512i bytes) const {
    const __m512i integers = Of::template integers<kVector>(bytes);
    const __m256i low = rounded(_mm512_castsi512_si256(integers), low_);
    const __m256i high = rounded(_mm512_extracti64x4_epi64(integers, 1), high_);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }

 private:
  // No product is rounded in float32: it has 8 + 11 bits.
  static __m256i rounded(__m256i integers, __m512 scales) {
    const __m512 numbers = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(integers));
    const __m512i bits = _mm512_castps_si512(_mm512_mul_ps(numbers, scales));
    const __m512i half_more = _mm512_add_epi32(bits, _mm512_set1_epi32(0x8000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(half_more, 16));
  }

  __m512 low_, high_;
};

#if defined(__AVX512FP16__)
// By float16: for small scales.
template <bool kLower>
class QuickProducts {
 public:
  explicit QuickProducts(const float16* of) {
    const __m512i kPairs =
        _mm512_set_epi32(0x000f000f, 0x000e000e, 0x000d000d, 0x000c000c, 0x000b000b, 0x000a000a,
                         0x00090009, 0x00080008, 0x00070007, 0x00060006, 0x00050005, 0x00040004,
                         0x00030003, 0x00020002, 0x00010001, 0);
    const __m512h scales = _mm512_castsi512_ph(_mm512_castsi256_si512(load_vector<__m256i>(of)));
    const __m512h raised = _mm512_scalef_ph(scales, _mm512_set1_ph(kScaleRaise));
    scales_ = _mm512_castsi512_ph(_mm512_permutexvar_epi16(kPairs, _mm512_castph_si512(raised)));
  }

  template <typename Of, int kVector>
  __m512i of(__m512i bytes) const {
    const __m512h cut = _mm512_mul_round_ph(Of::template halves<kVector>(bytes), scales_,
                                            _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    // 3 places down, half a last place more; with the sign, which fills the places left.
    const __m512i down = _mm512_mulhrs_epi16(_mm512_castph_si512(cut), _mm512_set1_epi16(1 << 12));
    const __m512i bits = _mm512_and_si512(down, _mm512_set1_epi16(static_cast<int16_t>(0x8fff)));
    if constexpr (kLower) return bits;
    const __mmask32 no_zeros = _mm512_test_epi16_mask(bits, _mm512_set1_epi16(0x7fff));
    return _mm512_mask_add_epi16(bits, no_zeros, bits, _mm512_set1_epi16(kLowered << 7));
  }

 private:
  __m512h scales_;
};
#endif

class AmxExpand {
 public:
  template <bool kLower, int kBits>
  static void step(const BlockStep<kBits>* from, bfloat16* to) {
#if defined(__AVX512FP16__)
    if (has_small_scales(from)) return by<QuickProducts<kLower>>(from, to);
#endif
    by<WideProducts<kLower>>(from, to);
  }

 private:
  // With them no product, raised, is beyond a float16's numbers, which end before 2^16.
  template <int kBits>
  static bool has_small_scales(const BlockStep<kBits>* step) {
    constexpr int16_t kLimit = (15 + 16 - kScaleRaise - (kBits - 1)) << 10;
    const __m512i no_signs =
        _mm512_and_si512(load_vector<__m512i>(step->scales), _mm512_set1_epi16(0x7fff));
    return _mm512_cmpge_epi16_mask(no_signs, _mm512_set1_epi16(kLimit)) == 0;
  }

  template <typename Products, int kBits>
  static void by(const BlockStep<kBits>* from, bfloat16* to) {
    constexpr int kTileBytes = kStepElements / 2 * kBits / 8;
    const auto* memory = reinterpret_cast<const char*>(from + kStepsFromMemory * 8 / kBits);
    const auto* cache = reinterpret_cast<const char*>(from + kStepsFromCache * 8 / kBits);
    __builtin_prefetch(memory + 2 * kTileBytes, 0, 2);
    __builtin_prefetch(cache + 2 * kTileBytes, 0, 3);
    for (int tile = 0; tile < 2; ++tile) {
      const Products products(from->scales + tile * kTileColumns);
#pragma GCC unroll 8
      for (int at = tile * kTileBytes; at < (tile + 1) * kTileBytes; at += 64) {
        __builtin_prefetch(memory + at, 0, 2);
        __builtin_prefetch(cache + at, 0, 3);
        to = store<Numbers<kBits>>(products, load_vector<__m512i>(from->bytes + at), to);
      }
    }
  }

  // The numbers of 64 bytes; where the next ones go.
  template <typename Of, typename Products>
  static bfloat16* store(const Products& products, __m512i bytes, bfloat16* to) {
    store_vector(to, products.template of<Of, 0>(bytes));
    store_vector(to + 32, products.template of<Of, 1>(bytes));
    if constexpr (Of::kVectors == 4) {
      store_vector(to + 64, products.template of<Of, 2>(bytes));
      store_vector(to + 96, products.template of<Of, 3>(bytes));
    }
    return to + Of::kVectors * 32;
  }
};

}  // namespace
}  // namespace legokv::cpu
