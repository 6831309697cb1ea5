// Products as AMX rounds them, without it: slow, for tests on any machine.
#include "cpu/kernels/multiply_group.h"

namespace legokv::cpu {
namespace {

struct SoftwareTiles {
  using Number = bfloat16;

  void multiply(const LinearBlock<bfloat16>& block) const {
    for (int row = 0; row < block.num_rows; ++row) {
      const char* at = reinterpret_cast<const char*>(block.x) + row * block.row_bytes;
      for (int column = 0; column < kPanelColumns; ++column) {
        float& sum = block.sums[row * kPanelColumns + column];
        if (!block.add) sum = 0;
        for (int step = 0; step < block.num_steps; ++step) {
          sum += sum_of_step(reinterpret_cast<const bfloat16*>(at) + step * kStepProducts,
                             block.weight + step * kStepElements, column);
        }
      }
    }
  }

 private:
  // Products with even numbers are summed for themselves, as are those with odd ones.
  static float sum_of_step(const bfloat16* x, const bfloat16* weight, int column) {
    const bfloat16* pairs =
        weight + column / kTileColumns * (kStepElements / 2) + column % kTileColumns * 2;
    float even = 0, odd = 0;
    for (int i = 0; i < kStepProducts; i += 2, pairs += 2 * kTileColumns) {
      even += to_float(x[i]) * to_float(pairs[0]);
      odd += to_float(x[i + 1]) * to_float(pairs[1]);
    }
    return even + odd;
  }
};

}  // namespace

void multiply_by_software(const LinearGroup<bfloat16>& group) {
  GroupProduct<SoftwareTiles>(group).run();
}

}  // namespace legokv::cpu
