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

// A bfloat16 step in a byte a product: a product is (byte - 128) times its column's scale, rounded.
// Each two rows of pairs are 16 words, whose bytes stand for the four vectors of those rows'
// halves.
struct alignas(64) ByteStep {
  uint8_t bytes[kStepElements];
  float16 scales[kPanelColumns];
};

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
void multiply_bytes_by_software(const LinearGroup<bfloat16, ByteStep>& group, bfloat16* scratch);
void multiply_bytes_by_amx(const LinearGroup<bfloat16, ByteStep>& group, bfloat16* scratch);

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
