// Products by the processor's tiles: AMX, 8 registers of 16 rows of 64 bytes.
#include <immintrin.h>

#include "cpu/kernels/multiply_blocks.h"

namespace legokv::cpu {
namespace {

// Four tiles of sums, two of x below each other, two of the weight side by side.
class AmxTiles {
 public:
  using Number = bfloat16;

  AmxTiles() = default;
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;
  ~AmxTiles() { _tile_release(); }

  void multiply(const LinearBlock<bfloat16>& block) {
    configure(block.num_rows);
    if (block.num_rows > kTileRows) {
      block.keep_x ? multiply_rows<true, true>(block) : multiply_rows<true, false>(block);
    } else {
      block.keep_x ? multiply_rows<false, true>(block) : multiply_rows<false, false>(block);
    }
  }

  template <typename Expand, typename Step>
  void multiply_expanding(const LinearBlock<bfloat16>& block, const Step* from) {
    configure(block.num_rows);
    if (block.num_rows > kTileRows) {
      multiply_ring<true, Expand>(block, from);
    } else {
      multiply_ring<false, Expand>(block, from);
    }
  }

 private:
  struct alignas(64) Configuration {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  };

  void configure(int num_rows) {
    if (num_rows == num_rows_) return;
    num_rows_ = num_rows;
    const int upper = num_rows < kTileRows ? num_rows : kTileRows;
    // A tile of no rows is not allowed; it is not used then.
    const int lower = num_rows > kTileRows ? num_rows - kTileRows : 1;
    const int rows[8] = {upper, upper, lower, lower, upper, lower, kTileRows, kTileRows};
    Configuration configuration;
    for (int tile = 0; tile < 8; ++tile) {
      configuration.row_bytes[tile] = 64;
      configuration.rows[tile] = static_cast<uint8_t>(rows[tile]);
    }
    _tile_loadconfig(&configuration);
  }

  template <bool kTwo>
  static void begin(const LinearBlock<bfloat16>& block) {
    constexpr int kStride = kPanelColumns * sizeof(float);
    if (block.add) {
      _tile_loadd(0, block.sums, kStride);
      _tile_loadd(1, block.sums + kTileColumns, kStride);
      if constexpr (kTwo) {
        _tile_loadd(2, block.sums + kTileRows * kPanelColumns, kStride);
        _tile_loadd(3, block.sums + kTileRows * kPanelColumns + kTileColumns, kStride);
      }
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
  }

  template <bool kTwo>
  static void end(const LinearBlock<bfloat16>& block) {
    constexpr int kStride = kPanelColumns * sizeof(float);
    _tile_stored(0, block.sums, kStride);
    _tile_stored(1, block.sums + kTileColumns, kStride);
    if constexpr (kTwo) {
      _tile_stored(2, block.sums + kTileRows * kPanelColumns, kStride);
      _tile_stored(3, block.sums + kTileRows * kPanelColumns + kTileColumns, kStride);
    }
  }

  // What the first cache need not keep is streamed past it. Compilers want tiles by number.
  template <bool kTwo, bool kKeepX>
  static void load_x(const char* x, int64_t row_bytes) {
    const char* lower = x + kTileRows * row_bytes;
    if constexpr (kKeepX) {
      _tile_loadd(4, x, row_bytes);
      if constexpr (kTwo) _tile_loadd(5, lower, row_bytes);
    } else {
      _tile_stream_loadd(4, x, row_bytes);
      if constexpr (kTwo) _tile_stream_loadd(5, lower, row_bytes);
    }
  }

  template <bool kKeep>
  static void load_weight(const bfloat16* weight) {
    if constexpr (kKeep) {
      _tile_loadd(6, weight, 64);
      _tile_loadd(7, weight + kStepElements / 2, 64);
    } else {
      _tile_stream_loadd(6, weight, 64);
      _tile_stream_loadd(7, weight + kStepElements / 2, 64);
    }
  }

  template <bool kTwo>
  static void multiply_tiles() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTwo) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }

  template <bool kTwo, bool kKeepX>
  static void multiply_rows(const LinearBlock<bfloat16>& block) {
    begin<kTwo>(block);
    const int64_t row_bytes = block.row_bytes;
    const auto* x = reinterpret_cast<const char*>(block.x);
    Ahead weight_ahead = block.weight_ahead, x_ahead = block.x_ahead;
    for (int step = 0; step < block.num_steps; ++step, x += 64) {
      weight_ahead.fetch();
      x_ahead.fetch();
      load_weight<!kKeepX>(block.weight + step * kStepElements);
      load_x<kTwo, kKeepX>(x, row_bytes);
      multiply_tiles<kTwo>();
    }
    end<kTwo>(block);
  }

  // Tiles wait for what is in the first cache: a step is loaded behind the stores of later ones,
  // while these are made.
  template <bool kTwo, typename Expand, typename Step>
  static void multiply_ring(const LinearBlock<bfloat16>& block, const Step* from) {
    constexpr int kBehind = kExpandedSteps - 1;
    auto* ring = const_cast<bfloat16*>(block.weight);
    const auto* x = reinterpret_cast<const char*>(block.x);
    begin<kTwo>(block);
    for (int step = 0; step < block.num_steps + kBehind; ++step) {
      if (step < block.num_steps) {
        Expand::step(from + step, ring + step % kExpandedSteps * kStepElements);
      }
      if (step < kBehind) continue;
      load_weight<true>(ring + (step - kBehind) % kExpandedSteps * kStepElements);
      load_x<kTwo, true>(x, block.row_bytes);
      x += 64;
      multiply_tiles<kTwo>();
    }
    end<kTwo>(block);
  }

  int num_rows_ = 0;
};

// Steps that are asked of memory, and of the second cache, before they are expanded.
constexpr int kStepsFromMemory = 16;
constexpr int kStepsFromCache = 2;

// The scales of 16 columns' pairs, 8 columns a vector.
struct PairScales {
  explicit PairScales(const float16* of) {
    const __m512i kLow = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    const __m512 scales = _mm512_cvtph_ps(load_vector<__m256i>(of));
    low = _mm512_permutexvar_ps(kLow, scales);
    high = _mm512_permutexvar_ps(_mm512_add_epi32(kLow, _mm512_set1_epi32(8)), scales);
  }

  __m512 low, high;
};

// Words' numbers of 4 bits at bit kAt, times scales: floats of 2^(23 - kAt) + 8 + number first.
template <int kAt>
class Nibbles {
 public:
  explicit Nibbles(const PairScales& scales)
      : low_offset_(_mm512_mul_ps(scales.low, _mm512_set1_ps(kOffset))),
        high_offset_(_mm512_mul_ps(scales.high, _mm512_set1_ps(kOffset))) {}

  __m512 low(__m512i words, const PairScales& scales) const {
    return _mm512_fmadd_ps(spread(words), scales.low, low_offset_);
  }

  __m512 high(__m512i words, const PairScales& scales) const {
    return _mm512_fmadd_ps(spread(words), scales.high, high_offset_);
  }

 private:
  // What is taken off has 21 - kAt bits times a scale's 11: no product is rounded here.
  static_assert(kAt >= 8 && kAt <= 19);
  static constexpr float kOffset = -static_cast<float>((1 << (23 - kAt)) + 8);

  static __m512 spread(__m512i words) {
    constexpr int kAndThenOr = 0xEA;
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(words, _mm512_set1_epi32(15 << kAt),
                                                         _mm512_set1_epi32((127 + 23 - kAt) << 23),
                                                         kAndThenOr));
  }

  __m512 low_offset_, high_offset_;
};

struct AmxExpand {
  // A byte in a float's second byte, behind the exponent of 2^15: 32768 + byte, exactly.
  static __m512 spread(__m512i words) {
    const __m512i kByte = _mm512_set1_epi32(0xff00), kExponent = _mm512_set1_epi32(0x47000000);
    constexpr int kAndThenOr = 0xEA;
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(words, kByte, kExponent, kAndThenOr));
  }

  // 16 pairs' numbers from their floats: the first's, then the second's.
  static void store(__m512 first, __m512 second, bfloat16* to) {
    const __m512bh both = _mm512_cvtne2ps_pbh(second, first);
    memcpy(to, &both, sizeof both);
  }

  static void step(const ByteStep* from, bfloat16* to) {
    // No product is rounded before the last step: it has 8 + 11 bits, what is taken off 9 + 11.
    constexpr float kOffset = -(32768.0f + 128.0f);
    const auto* memory = reinterpret_cast<const char*>(from + kStepsFromMemory);
    const auto* cache = reinterpret_cast<const char*>(from + kStepsFromCache);
    __builtin_prefetch(memory + kStepElements, 0, 2);
    __builtin_prefetch(cache + kStepElements, 0, 3);
    for (int tile = 0; tile < 2; ++tile) {
      const PairScales scales(from->scales + tile * 16);
      const __m512 low = scales.low, high = scales.high;
      const __m512 low_offset = _mm512_mul_ps(low, _mm512_set1_ps(kOffset));
      const __m512 high_offset = _mm512_mul_ps(high, _mm512_set1_ps(kOffset));
#pragma GCC unroll 8
      for (int at = tile * kStepElements / 2; at < (tile + 1) * kStepElements / 2; at += 64) {
        __builtin_prefetch(memory + at, 0, 2);
        __builtin_prefetch(cache + at, 0, 3);
        const __m512i bytes = load_vector<__m512i>(from->bytes + at);
        store(_mm512_fmadd_ps(spread(_mm512_slli_epi32(bytes, 8)), low, low_offset),
              _mm512_fmadd_ps(spread(bytes), high, high_offset), to + at);
        store(_mm512_fmadd_ps(spread(_mm512_srli_epi32(bytes, 8)), low, low_offset),
              _mm512_fmadd_ps(spread(_mm512_srli_epi32(bytes, 16)), high, high_offset),
              to + at + 32);
      }
    }
  }

  static void step(const NibbleStep* from, bfloat16* to) {
    constexpr int kBytes = kStepElements / 2;
    const auto* memory = reinterpret_cast<const char*>(from + 2 * kStepsFromMemory);
    const auto* cache = reinterpret_cast<const char*>(from + 2 * kStepsFromCache);
    __builtin_prefetch(memory + kBytes, 0, 2);
    __builtin_prefetch(cache + kBytes, 0, 3);
    for (int tile = 0; tile < 2; ++tile) {
      const PairScales scales(from->scales + tile * 16);
      const Nibbles<8> at_8(scales);
      const Nibbles<12> at_12(scales);
      const Nibbles<16> at_16(scales);
#pragma GCC unroll 4
      for (int at = tile * kBytes / 2; at < (tile + 1) * kBytes / 2; at += 64, to += 128) {
        __builtin_prefetch(memory + at, 0, 2);
        __builtin_prefetch(cache + at, 0, 3);
        const __m512i words = load_vector<__m512i>(from->bytes + at);
        const __m512i up = _mm512_slli_epi32(words, 8), down = _mm512_srli_epi32(words, 12);
        store(at_8.low(up, scales), at_8.high(words, scales), to);
        store(at_16.low(words, scales), at_12.high(down, scales), to + 32);
        store(at_12.low(up, scales), at_12.high(words, scales), to + 64);
        store(at_8.low(down, scales), at_16.high(down, scales), to + 96);
      }
    }
  }
};

}  // namespace

template <typename Step>
void multiply_blocks_by_amx(const LinearGroup<bfloat16, Step>& group, bfloat16* scratch) {
  BlockProduct<AmxTiles, AmxExpand, Step>(group, scratch).run();
}

template void multiply_blocks_by_amx(const LinearGroup<bfloat16, ByteStep>&, bfloat16*);
template void multiply_blocks_by_amx(const LinearGroup<bfloat16, NibbleStep>&, bfloat16*);

void multiply_by_amx(const LinearGroup<bfloat16>& group) { GroupProduct<AmxTiles>(group).run(); }

}  // namespace legokv::cpu
