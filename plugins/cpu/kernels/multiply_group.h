// The order in which a group is multiplied: blocks of rows, parts of sums, panels of the weight.
//
// A sum goes on where its last part left it, so the order serves speed alone and moves no bit.
#pragma once

#include "cpu/kernels/conversions.h"
#include "cpu/kernels/linear_group.h"

namespace legokv::cpu {
namespace {

// Steps of a part: so much of a block's rows, or of a panel, stays in the first cache.
template <typename Number>
constexpr int kPartSteps = 36 / sizeof(Number);
// Panels that meet a block of rows one after another: so much of the weight stays in the second.
constexpr int kMostPanels = 8;
// Cache lines of a panel's step, and of a block's rows.
template <typename Number>
constexpr int kStepLines = kStepElements * sizeof(Number) / 64;

// What is read later: so many cache lines of it are fetched at each step.
struct Ahead {
  const char* from;
  int lines;

  // Asks for the lines of one step; those of the next follow.
  void fetch() {
    for (int line = 0; line < lines; ++line, from += 64) __builtin_prefetch(from, 0, 2);
  }
};

// Up to 32 rows against a panel's 32 columns, in some steps.
template <typename Number>
struct LinearBlock {
  const Number* x;
  int64_t row_bytes;
  int num_rows;
  const Number* weight;
  int num_steps;
  float* sums;  // [kBlockRows, kPanelColumns], 64-aligned
  bool add;     // to the sums; else they are replaced
  bool keep_x;  // in the first cache, for the next panel; else the panel, for the next rows
  Ahead weight_ahead;
  Ahead x_ahead;
};

template <typename Number>
void round_sums(const float* sums, const float* bias, Number* results) {
  for (int i = 0; i < kPanelColumns; i += kLanes) {
    store_floats<kLanes>(results + i,
                         load_vector<Floats>(sums + i) + load_vector<Floats>(bias + i));
  }
}

// Rounds the sums of some rows and a panel's columns, and puts them into the group's result.
template <typename Number, typename Weight>
void store_block(const LinearGroup<Number, Weight>& group, int64_t first_row, int num_rows,
                 int first_column, const float* sums) {
  const int left = group.num_columns - first_column;
  const int num_columns = left < kPanelColumns ? left : kPanelColumns;
  float bias[kPanelColumns] = {};
  if (group.bias != nullptr) {
    memcpy(bias, group.bias + first_column, num_columns * sizeof(float));
  }
  Number* out = group.out + first_row * group.out_stride + first_column;
  for (int row = 0; row < num_rows; ++row, sums += kPanelColumns, out += group.out_stride) {
    if (num_columns == kPanelColumns) {
      round_sums(sums, bias, out);
    } else {
      Number results[kPanelColumns];
      round_sums(sums, bias, results);
      memcpy(out, results, num_columns * sizeof(Number));
    }
  }
}

// Tiles::multiply does a block of Tiles::Number; rows of its sums past num_rows may change.
template <typename Tiles>
class GroupProduct {
 public:
  using Number = typename Tiles::Number;

  explicit GroupProduct(const LinearGroup<Number>& group)
      : group_(group),
        num_steps_(group.num_products / kStepProducts),
        num_panels_((group.num_columns + kPanelColumns - 1) / kPanelColumns),
        num_blocks_((group.num_rows + kBlockRows - 1) / kBlockRows),
        num_parts_(num_blocks_ == 1 ? 1
                                    : (num_steps_ + kPartSteps<Number> - 1) / kPartSteps<Number>),
        // For few rows the panels are what takes time to arrive.
        panels_at_once_(clamp(num_blocks_ / 2, 1, kMostPanels)) {}

  void run() {
    for (int first = 0; first < num_panels_; first += panels_at_once_) {
      const int num_panels = clamp(num_panels_ - first, 1, panels_at_once_);
      for (int64_t block = 0; block < num_blocks_; ++block) {
        for (int part = 0; part < num_parts_; ++part) {
          for (int i = 0; i < num_panels; ++i) multiply(block, part, {first, num_panels}, i);
        }
      }
    }
  }

 private:
  struct Panels {
    int first;
    int count;
  };

  static int clamp(int64_t value, int least, int most) {
    return static_cast<int>(value < least ? least : value < most ? value : most);
  }

  int first_step(int part) const { return num_steps_ * part / num_parts_; }

  const Number* weight_of(int panel, int step) const {
    return group_.weight + (int64_t{panel} * num_steps_ + step) * kStepElements;
  }

  const Number* rows_of(int64_t block) const {
    return group_.x + block * kBlockRows * group_.num_products;
  }

  // The panels after these, spread over their blocks.
  Ahead weight_ahead(int64_t block, int step, int num_steps, int panel) const {
    const int next = panel + panels_at_once_;
    if (next >= num_panels_) return {nullptr, 0};
    const int lines = static_cast<int>((kStepLines<Number> + num_blocks_ - 1) / num_blocks_);
    const auto* from = reinterpret_cast<const char*>(weight_of(next, step));
    return {from + block * num_steps * lines * 64, lines};
  }

  // The next block's rows, spread over this one's panels.
  Ahead x_ahead(int64_t block, int step, int num_steps, const Panels& panels, int i) const {
    const int lines = panels.count < kMostPanels / 2 ? 0 : kStepLines<Number> / panels.count;
    if (lines == 0 || block + 1 == num_blocks_) return {nullptr, 0};
    const auto* from = reinterpret_cast<const char*>(rows_of(block + 1));
    return {from + (int64_t{step} * panels.count + i * num_steps) * lines * 64, lines};
  }

  void multiply(int64_t block, int part, const Panels& panels, int i) {
    const int panel = panels.first + i;
    const int num_rows = clamp(group_.num_rows - block * kBlockRows, 1, kBlockRows);
    const int step = first_step(part), num_steps = first_step(part + 1) - step;
    tiles_.multiply(
        {rows_of(block) + step * kStepProducts, group_.num_products * int64_t{sizeof(Number)},
         num_rows, weight_of(panel, step), num_steps, sums_[i], part > 0,
         panels.count > 1 || num_blocks_ == 1, weight_ahead(block, step, num_steps, panel),
         x_ahead(block, step, num_steps, panels, i)});
    if (part + 1 == num_parts_) {
      store_block(group_, block * kBlockRows, num_rows, panel * kPanelColumns, sums_[i]);
    }
  }

  const LinearGroup<Number>& group_;
  const int num_steps_;
  const int num_panels_;
  const int64_t num_blocks_;
  const int num_parts_;
  const int panels_at_once_;
  Tiles tiles_;
  alignas(64) float sums_[kMostPanels][kBlockRows * kPanelColumns];
};

}  // namespace
}  // namespace legokv::cpu
