// Products as AMX rounds them, without it: slow, for tests on any machine.
#include "cpu/kernels/multiply_blocks.h"

namespace legokv::cpu {
namespace {

struct SoftwareTiles {
  using Number = bfloat16;

  const bfloat16* raised(const bfloat16*, int64_t, bfloat16*) const { return nullptr; }

  template <typename Expand, bool kLower, typename Step>
  void multiply_expanding(LinearBlock<bfloat16> block, const Step* from) const {
    auto* ring = const_cast<bfloat16*>(block.weight);
    const int num_steps = block.num_steps;
    block.num_steps = 1;
    for (int step = 0; step < num_steps; ++step, block.x += kStepProducts) {
      Expand::template step<kLower>(from + step, ring);
      block.add = step > 0;
      multiply(block);
    }
  }

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

struct SoftwareExpand {
  // Nothing is lowered here, as no rows are raised.
  template <bool kLower, int kBits>
  static void step(const BlockStep<kBits>* from, bfloat16* to) {
    for (int i = 0; i < kStepElements; ++i) {
      const int column = i / (kStepElements / 2) * kTileColumns + i % 32 / 2;
      to[i] = rounded(static_cast<float>(number_in(*from, i)) * to_float(from->scales[column]));
    }
  }

  static bfloat16 rounded(float exact) {
    uint32_t bits;
    memcpy(&bits, &exact, sizeof bits);
    bits = (bits + 0x8000) & 0xffff0000;
    memcpy(&exact, &bits, sizeof bits);
    return from_float<bfloat16>(exact);
  }
};

}  // namespace

template <typename Step>
void multiply_blocks_by_software(const LinearGroup<bfloat16, Step>& group, bfloat16* scratch) {
  BlockProduct<SoftwareTiles, SoftwareExpand, Step>(group, scratch).run();
}

template void multiply_blocks_by_software(const LinearGroup<bfloat16, ByteStep>&, bfloat16*);
template void multiply_blocks_by_software(const LinearGroup<bfloat16, NibbleStep>&, bfloat16*);

void multiply_by_software(const LinearGroup<bfloat16>& group) {
  GroupProduct<SoftwareTiles>(group).run();
}

}  // namespace legokv::cpu
