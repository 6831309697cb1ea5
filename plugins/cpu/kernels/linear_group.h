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

template <typename Number>
struct LinearGroup {
  const Number* x;       // of the first row
  const Number* weight;  // of the first panel
  const float* bias;     // of the first column, or null
  Number* out;           // of the first row and column
  int64_t out_stride;
  int64_t num_rows;
  int32_t num_columns;   // no multiple of 32 only where the result ends
  int32_t num_products;  // a multiple of 32
};

void multiply_by_software(const LinearGroup<bfloat16>& group);
void multiply_by_amx(const LinearGroup<bfloat16>& group);

}  // namespace legokv::cpu
