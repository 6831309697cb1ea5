// Products with a weight in blocks of few bits: it is expanded to bfloat16 panels, then multiplied
// as those are.
//
// So a row's result has the bits that the expanded weight's has, for any number of rows. For few
// rows expanding is what takes time. Where it is cheaper so, what they are multiplied by is a power
// of two too small and they are as much too large: their products are the same.
#pragma once

#include "cpu/kernels/multiply_group.h"

namespace legokv::cpu {
namespace {

// Expand::step<kLower>(from, to) makes a step of bfloat16. Tiles::multiply_expanding(block, from)
// makes the block's steps at its weight, kExpandedSteps in a ring. Tiles::raised(rows, size, to)
// copies the rows for a lowered weight; null where it wants none, or not for these rows.
template <typename Tiles, typename Expand, typename Step>
class BlockProduct {
 public:
  using Group = LinearGroup<bfloat16, Step>;

  BlockProduct(const Group& group, bfloat16* scratch)
      : group_(group),
        scratch_(scratch),
        raised_(nullptr),
        num_steps_(group.num_products / kStepProducts),
        num_panels_((group.num_columns + kPanelColumns - 1) / kPanelColumns),
        panels_at_once_(expanded_panels(group.num_rows)) {}

  void run() {
    if (group_.num_rows <= kBlockRows) {
      raised_ = tiles_.raised(group_.x, group_.num_rows * group_.num_products,
                              scratch_ + kExpandedSteps * kStepElements);
      for (int panel = 0; panel < num_panels_; ++panel) {
        raised_ == nullptr ? multiply_few<false>(panel) : multiply_few<true>(panel);
      }
    } else {
      for (int first = 0; first < num_panels_; first += panels_at_once_) multiply_many(first);
    }
  }

 private:
  static int smaller(int a, int b) { return a < b ? a : b; }

  // One panel against all rows, each step expanded a little before it is multiplied.
  template <bool kLower>
  void multiply_few(int panel) {
    const Step* from = group_.weight + int64_t{panel} * num_steps_;
    const int num_rows = static_cast<int>(group_.num_rows);
    tiles_.template multiply_expanding<Expand, kLower>(
        {kLower ? raised_ : group_.x, group_.num_products * int64_t{sizeof(bfloat16)}, num_rows,
         scratch_, num_steps_, sums_, false, true, Ahead{}, Ahead{}},
        from);
    store_block(group_, 0, num_rows, panel * kPanelColumns, sums_);
  }

  // Some whole panels, expanded once for all blocks of rows.
  void multiply_many(int first) {
    const int count = smaller(num_panels_ - first, panels_at_once_);
    const int first_column = first * kPanelColumns;
    const Step* from = group_.weight + int64_t{first} * num_steps_;
    for (int i = 0; i < count * num_steps_; ++i) {
      Expand::template step<false>(from + i, scratch_ + int64_t{i} * kStepElements);
    }
    const LinearGroup<bfloat16> panels{
        group_.x,
        scratch_,
        group_.bias == nullptr ? nullptr : group_.bias + first_column,
        group_.out + first_column,
        group_.out_stride,
        group_.num_rows,
        smaller(group_.num_columns - first_column, count * kPanelColumns),
        group_.num_products};
    GroupProduct<Tiles>(panels).run();
  }

  const Group& group_;
  bfloat16* const scratch_;
  const bfloat16* raised_;
  const int num_steps_;
  const int num_panels_;
  const int panels_at_once_;
  Tiles tiles_;
  alignas(64) float sums_[kBlockRows * kPanelColumns];
};

}  // namespace
}  // namespace legokv::cpu
