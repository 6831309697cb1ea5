// A product of many rows by tiles: 16 rows of `a` and 16 columns of `b`, 32 products at once.
//
// The processor's tiles, or a software form of the same sums, slow, for tests on any machine.
#pragma once

#include <type_traits>

#include "cpu/kernels/product.h"

namespace legokv::cpu {
namespace {

constexpr int kTileWords = kStepProducts / 2;

// Some of a product's columns, the first a multiple of 32.
struct Columns {
  int first, end;
};

#if defined(__AMX_BF16__)

// The tiles are a thread's for as long as this is there: 16 whole rows each.
class TileSession {
 public:
  TileSession() {
    struct alignas(64) {
      uint8_t palette = 1;
      uint8_t reserved[15] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } configuration;
    _tile_loadconfig(&configuration);
  }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
  ~TileSession() { _tile_release(); }
};

// Tiles 0 to 3 are sums, two of `a` below each other by two of `b` side by side.
template <bool kLower, bool kRight>
inline void multiply_tiles(const Factors& factors, const Sums& sums) {
  const int64_t a_stride = factors.row_words * int64_t{sizeof(uint32_t)};
  const int64_t c_stride = sums.row_floats * int64_t{sizeof(float)};
  constexpr int kBStride = kPanelWidth * sizeof(uint32_t);
  float* lower = sums.c + kTileRows * int64_t{sums.row_floats};
  if (sums.add) {
    _tile_loadd(0, sums.c, c_stride);
    if constexpr (kRight) _tile_loadd(1, sums.c + kTileColumns, c_stride);
    if constexpr (kLower) _tile_loadd(2, lower, c_stride);
    if constexpr (kLower && kRight) _tile_loadd(3, lower + kTileColumns, c_stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int word = 0; word < factors.depth; word += kTileWords) {
    _tile_loadd(4, factors.a + word, a_stride);
    _tile_loadd(6, factors.b + word * kPanelWidth, kBStride);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kRight) {
      _tile_loadd(7, factors.b + word * kPanelWidth + kTileColumns, kBStride);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kLower) {
      _tile_loadd(5, factors.a + word + kTileRows * int64_t{factors.row_words}, a_stride);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (kLower && kRight) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums.c, c_stride);
  if constexpr (kRight) _tile_stored(1, sums.c + kTileColumns, c_stride);
  if constexpr (kLower) _tile_stored(2, lower, c_stride);
  if constexpr (kLower && kRight) _tile_stored(3, lower + kTileColumns, c_stride);
}

// Of a panel's columns: two tiles of them, or the last one.
inline void multiply_columns(int num_rows, int num_tiles, const Factors& factors,
                             const Sums& sums) {
  const bool lower = num_rows > kTileRows;
  if (num_tiles > 1) {
    lower ? multiply_tiles<true, true>(factors, sums) : multiply_tiles<false, true>(factors, sums);
  } else {
    lower ? multiply_tiles<true, false>(factors, sums)
          : multiply_tiles<false, false>(factors, sums);
  }
}

// Rows up to the next multiple of 16 may change. Columns and the depth are whole tiles.
inline void multiply_by_tiles(int num_rows, Columns columns, const Factors& factors,
                              const Sums& sums) {
  static_assert(kPanelWidth % (2 * kTileColumns) == 0);
  for (int column = columns.first; column < columns.end; column += 2 * kTileColumns) {
    const int64_t panel = int64_t{column / kPanelWidth} * kPanelWidth * factors.packed_depth;
    multiply_columns(num_rows, (columns.end - column) / kTileColumns,
                     {factors.a, factors.row_words, factors.b + panel + column % kPanelWidth,
                      factors.depth, factors.packed_depth},
                     {sums.c + column, sums.row_floats, sums.add});
  }
}

#else

struct TileSession {};

inline float half_of(uint32_t word, int half) {
  const bfloat16 number = {static_cast<uint16_t>(half == 0 ? word : word >> 16)};
  return to_float(number);
}

inline void multiply_by_tiles(int num_rows, Columns columns, const Factors& factors,
                              const Sums& sums) {
  for (int row = 0; row < num_rows; ++row) {
    const uint32_t* a = factors.a + int64_t{row} * factors.row_words;
    for (int column = columns.first; column < columns.end; ++column) {
      const uint32_t* b = factors.b + column % kPanelWidth +
                          int64_t{column / kPanelWidth} * kPanelWidth * factors.packed_depth;
      float& sum = sums.c[int64_t{row} * sums.row_floats + column];
      if (!sums.add) sum = 0;
      for (int first = 0; first < factors.depth; first += kTileWords) {
        float halves[2] = {0, 0};
        for (int i = 0; i < 2 * kTileWords; ++i) {
          const int word = first + i / 2;
          halves[i % 2] += half_of(a[word], i % 2) * half_of(b[word * kPanelWidth], i % 2);
        }
        sum += halves[0] + halves[1];
      }
    }
  }
}

#endif

// As `Operand` multiplies.
template <typename Operand>
inline void multiply_as(int num_rows, int num_columns, const Factors& factors, const Sums& sums) {
  if constexpr (std::is_same_v<Operand, TileWords>) {
    multiply_by_tiles(num_rows, {0, num_columns}, factors, sums);
  } else {
    multiply<Operand>(num_rows, num_columns / kLanes, factors, sums);
  }
}

struct NoSession {};

template <typename Operand>
using SessionOf = std::conditional_t<std::is_same_v<Operand, TileWords>, TileSession, NoSession>;

}  // namespace
}  // namespace legokv::cpu
