// Products of float32 rows: each result is summed in the order of its products, by itself.
#pragma once

#include "cpu/kernels/multiply_group.h"

namespace legokv::cpu {
namespace {

// With two vectors of columns for each row and two of the weight they fill the registers.
constexpr int kFloatRows = kLanes == 16 ? 12 : 6;
constexpr int kFloatColumns = 2 * kLanes;
static_assert(kPanelColumns % kFloatColumns == 0);

class FloatTiles {
 public:
  using Number = float;

  void multiply(const LinearBlock<float>& block) const {
    for (int first = 0; first < block.num_rows; first += kFloatRows) {
      for (int column = 0; column < kPanelColumns; column += kFloatColumns) {
        multiply_some<kFloatRows>(block, first, column);
      }
    }
  }

 private:
  template <int kRows>
  static void multiply_some(const LinearBlock<float>& block, int first_row, int column) {
    if constexpr (kRows > 1) {
      if (block.num_rows - first_row < kRows) {
        return multiply_some<kRows - 1>(block, first_row, column);
      }
    }
    // What comes later is asked for once a block.
    const bool fetches = first_row == 0 && column == 0;
    multiply_rows<kRows>(block, first_row, column, fetches ? block.weight_ahead : Ahead{},
                         fetches ? block.x_ahead : Ahead{});
  }

  template <int kRows>
  static void multiply_rows(const LinearBlock<float>& block, int first_row, int column,
                            Ahead weight_ahead, Ahead x_ahead) {
    const int64_t stride = block.row_bytes / static_cast<int64_t>(sizeof(float));
    const float* x = block.x + first_row * stride;
    const float* weight = block.weight + column;
    float* sums = block.sums + first_row * kPanelColumns + column;
    Floats sum[kRows][2] = {};
    if (block.add) load_sums<kRows>(sums, sum);
    for (int step = 0; step < block.num_steps; ++step) {
      weight_ahead.fetch();
      x_ahead.fetch();
#pragma GCC unroll 8
      for (int product = 0; product < kStepProducts; ++product, ++x, weight += kPanelColumns) {
        const Floats left = load_vector<Floats>(weight);
        const Floats right = load_vector<Floats>(weight + kLanes);
#pragma GCC unroll 12
        for (int row = 0; row < kRows; ++row) {
          sum[row][0] = sum[row][0] + x[row * stride] * left;
          sum[row][1] = sum[row][1] + x[row * stride] * right;
        }
      }
    }
#pragma GCC unroll 12
    for (int row = 0; row < kRows; ++row) {
      store_vector(sums + row * kPanelColumns, sum[row][0]);
      store_vector(sums + row * kPanelColumns + kLanes, sum[row][1]);
    }
  }

  template <int kRows>
  static void load_sums(const float* sums, Floats (*sum)[2]) {
#pragma GCC unroll 12
    for (int row = 0; row < kRows; ++row) {
      sum[row][0] = load_vector<Floats>(sums + row * kPanelColumns);
      sum[row][1] = load_vector<Floats>(sums + row * kPanelColumns + kLanes);
    }
  }
};

void multiply_floats(const LinearGroup<float>& group) { GroupProduct<FloatTiles>(group).run(); }

}  // namespace
}  // namespace legokv::cpu
