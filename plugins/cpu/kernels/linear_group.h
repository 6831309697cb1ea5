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

// A bfloat16 step in few bits a product: a product is its number times its column's scale, rounded;
// 2^(kBits - 1) is added to numbers here. Of 8 bits each two rows of pairs are 16 words, whose
// bytes stand for the four vectors of those rows' halves. Of 4 bits each four rows are: low halves
// of bytes stand for the first two, high halves for the others.
template <int kBits>
struct alignas(64) BlockStep {
  uint8_t bytes[kStepElements * kBits / 8];
  float16 scales[kPanelColumns];
};
using ByteStep = BlockStep<8>;
using NibbleStep = BlockStep<4>;

// Where a bfloat16 step's element is among the numbers of a BlockStep's bytes: of 8 bits the byte.
inline int byte_of(int element) { return element / 64 * 64 + element % 16 * 4 + element % 64 / 16; }

template <int kBits>
inline uint8_t number_in(const BlockStep<kBits>& step, int element) {
  const int byte = byte_of(element);
  if constexpr (kBits == 8) return step.bytes[byte];
  return step.bytes[byte / 128 * 64 + byte % 64] >> (byte % 128 / 64 * 4) & 15;
}

template <int kBits>
inline void put_number(BlockStep<kBits>* step, int element, int number) {
  const int byte = byte_of(element), raised = number + (1 << (kBits - 1));
  if constexpr (kBits == 8) {
    step->bytes[byte] = static_cast<uint8_t>(raised);
  } else {
    step->bytes[byte / 128 * 64 + byte % 64] |=
        static_cast<uint8_t>(raised << (byte % 128 / 64 * 4));
  }
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
void multiply_by_amx(const LinearGroup<bfloat16>& group);

// `scratch`: expanded_elements(group.num_rows, group.num_products), 64-aligned.
template <typename Step>
void multiply_blocks_by_software(const LinearGroup<bfloat16, Step>& group, bfloat16* scratch);
template <typename Step>
void multiply_blocks_by_amx(const LinearGroup<bfloat16, Step>& group, bfloat16* scratch);

// Panels that many rows meet one after another are expanded at once; for few rows some steps are.
constexpr int kExpandedPanels = 8;
constexpr int kExpandedSteps = 4;

// As many as meet a block of rows one after another.
inline int expanded_panels(int64_t num_rows) {
  const int64_t panels = num_rows / (2 * kBlockRows) + 1;
  return panels < kExpandedPanels ? static_cast<int>(panels) : kExpandedPanels;
}

// Enough for groups of fewer rows, too.
inline int64_t expanded_elements(int64_t num_rows, int32_t num_products) {
  return num_rows <= kBlockRows ? int64_t{kExpandedSteps} * kStepElements
                                : int64_t{expanded_panels(num_rows)} * kPanelColumns * num_products;
}

}  // namespace legokv::cpu
