// A linear layer's part that one thread computes: some rows, and some columns of the result.
//
// A packed weight is a row of panels of 32 columns, a panel a row of steps of 32 products. In
// float32 a step has for each product its columns. In bfloat16 it is two tiles of 16 columns; a
// tile has for each pair of products the pairs of its columns.
#pragma once

#include <cstdint>

#include "legokv/numbers.h"

namespace legokv::cpu {

constexpr int kTileRows = 16;
constexpr int kTileColumns = 16;
constexpr int kStepProducts = 32;
constexpr int kPanelColumns = 2 * kTileColumns;
constexpr int kBlockRows = 2 * kTileRows;
constexpr int kStepElements = kStepProducts * kPanelColumns;

// A bfloat16 step in few bits a product: a product is its number times its column's scale, rounded
// to the nearest, between two away from zero; 2^(kBits - 1) is added to numbers here.
template <int kBits>
struct alignas(64) BlockStep {
  uint8_t bytes[kStepElements * kBits / 8];
  float16 scales[kPanelColumns];
};
using ByteStep = BlockStep<8>;
using NibbleStep = BlockStep<4>;

// Where a bfloat16 step's element is in a BlockStep: a byte, and the bit there. Of 8 bits each 16
// bytes are 8 elements of one vector of 32, then as many of the next. Of 4 bits each 16-bit word
// has one element of each of four vectors.
struct NumberPlace {
  int byte;
  int bit;
};

template <int kBits>
inline NumberPlace place_of(int element) {
  if constexpr (kBits == 8) {
    return {element / 64 * 64 + element % 32 / 8 * 16 + element % 64 / 32 * 8 + element % 8, 0};
  } else {
    return {element / 128 * 64 + element % 32 * 2 + element % 128 / 64, element % 64 / 32 * 4};
  }
}

template <int kBits>
inline int number_in(const BlockStep<kBits>& step, int element) {
  const NumberPlace place = place_of<kBits>(element);
  return (step.bytes[place.byte] >> place.bit & ((1 << kBits) - 1)) - (1 << (kBits - 1));
}

// Into a step where nothing else has been put there.
template <int kBits>
inline void put_number(BlockStep<kBits>* step, int element, int number) {
  const NumberPlace place = place_of<kBits>(element);
  step->bytes[place.byte] |= static_cast<uint8_t>((number + (1 << (kBits - 1))) << place.bit);
}

template <typename Number, typename Weight = Number>
struct LinearGroup {
  const Number* x;       // of the first row
  const Weight* weight;  // of the first panel
  const float* bias;     // of the first column, or null
  Number* out;           // of the first row and column
  int64_t out_stride;
  int64_t num_rows;
  int32_t num_columns;   // no multiple of 32 only where the result ends
  int32_t num_products;  // a multiple of 32
};

void multiply_by_software(const LinearGroup<bfloat16>& group);
void multiply_by_pairs(const LinearGroup<bfloat16>& group);
void multiply_by_amx(const LinearGroup<bfloat16>& group);

// `scratch`: expanded_elements(group.num_rows, group.num_products), 64-aligned.
template <typename Step>
void multiply_blocks_by_software(const LinearGroup<bfloat16, Step>& group, bfloat16* scratch);
template <typename Step>
void multiply_blocks_by_pairs(const LinearGroup<bfloat16, Step>& group, bfloat16* scratch);
template <typename Step>
void multiply_blocks_by_amx(const LinearGroup<bfloat16, Step>& group, bfloat16* scratch);

// Panels that many rows meet one after another are expanded at once; for few rows some steps are,
// and these rows are copied.
constexpr int kExpandedPanels = 8;
constexpr int kExpandedSteps = 4;

// As many as meet a block of rows one after another.
inline int expanded_panels(int64_t num_rows) {
  const int64_t panels = num_rows / (2 * kBlockRows) + 1;
  return panels < kExpandedPanels ? static_cast<int>(panels) : kExpandedPanels;
}

// Enough for groups of fewer rows, too.
inline int64_t expanded_elements(int64_t num_rows, int32_t num_products) {
  const int64_t few_rows = num_rows < kBlockRows ? num_rows : kBlockRows;
  const int64_t panels = num_rows <= kBlockRows ? 0 : expanded_panels(num_rows);
  const int64_t columns = panels * kPanelColumns;
  return kExpandedSteps * kStepElements + (few_rows > columns ? few_rows : columns) * num_products;
}

}  // namespace legokv::cpu
