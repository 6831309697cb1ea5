// Products by the processor's tiles: AMX, 8 registers of 16 rows of 64 bytes.
#include <immintrin.h>

#include "cpu/kernels/amx_expand.h"
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

  template <typename Expand, bool kLower, typename Step>
  void multiply_expanding(const LinearBlock<bfloat16>& block, const Step* from) {
    configure(block.num_rows);
    if (block.num_rows > kTileRows) {
      multiply_ring<true, Expand, kLower>(block, from);
    } else {
      multiply_ring<false, Expand, kLower>(block, from);
    }
  }

  // Rows times 2^kLowered; null where that is too large for bfloat16. Tiles take what is below
  // 2^-126 as 0, so here it is 0.
  const bfloat16* raised(const bfloat16* rows, int64_t num_elements, bfloat16* to) const {
    const __m512i kExponent = _mm512_set1_epi16(0x7f80);
    __mmask32 too_large = 0;
    for (int64_t i = 0; i < num_elements; i += 32) {
      const __m512i bits = load_vector<__m512i>(rows + i);
      const __m512i exponents = _mm512_and_si512(bits, kExponent);
      const __mmask32 normal = _mm512_test_epi16_mask(bits, kExponent);
      too_large |= _mm512_cmpgt_epi16_mask(exponents, _mm512_set1_epi16((254 - kLowered) << 7));
      _mm512_storeu_si512(to + i,
                          _mm512_maskz_add_epi16(normal, bits, _mm512_set1_epi16(kLowered << 7)));
    }
    return too_large == 0 ? to : nullptr;
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
  template <bool kTwo, typename Expand, bool kLower, typename Step>
  static void multiply_ring(const LinearBlock<bfloat16>& block, const Step* from) {
    constexpr int kBehind = kExpandedSteps - 1;
    auto* ring = const_cast<bfloat16*>(block.weight);
    const auto* x = reinterpret_cast<const char*>(block.x);
    begin<kTwo>(block);
    for (int step = 0; step < block.num_steps + kBehind; ++step) {
      if (step < block.num_steps) {
        Expand::template step<kLower>(from + step, ring + step % kExpandedSteps * kStepElements);
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

}  // namespace

template <typename Step>
void multiply_blocks_by_amx(const LinearGroup<bfloat16, Step>& group, bfloat16* scratch) {
  BlockProduct<AmxTiles, AmxExpand, Step>(group, scratch).run();
}

template void multiply_blocks_by_amx(const LinearGroup<bfloat16, ByteStep>&, bfloat16*);
template void multiply_blocks_by_amx(const LinearGroup<bfloat16, NibbleStep>&, bfloat16*);

void multiply_by_amx(const LinearGroup<bfloat16>& group) { GroupProduct<AmxTiles>(group).run(); }

}  // namespace legokv::cpu
