// Products of pairs of bfloat16 by AVX-512, each result summed pair by pair in their order.
#include <immintrin.h>

#include "cpu/kernels/multiply_blocks.h"
#include "cpu/kernels/operands.h"
#include "cpu/kernels/pair_expand.h"

namespace legokv::cpu {
namespace {

// With two vectors of columns for each row and two of the weight they fill the registers.
constexpr int kPairRows = 12;
// Rows whose sums leave room for the registers that a weight is expanded in.
constexpr int kDirectRows = 8;
constexpr int kStepPairs = kStepProducts / 2;

class PairTiles {
 public:
  using Number = bfloat16;

  const bfloat16* raised(const bfloat16*, int64_t, bfloat16*) const { return nullptr; }

  void multiply(const LinearBlock<bfloat16>& block) const {
    for (int first = 0; first < block.num_rows; first += kPairRows) {
      multiply_some<kPairRows>(block, first);
    }
  }

  template <typename Expand, bool kLower, int kBits>
  void multiply_expanding(const LinearBlock<bfloat16>& block, const BlockStep<kBits>* from) const {
    if (block.num_rows > kDirectRows) return multiply_ring<Expand>(block, from);
    multiply_direct<kDirectRows>(block, from);
  }

 private:
  template <int kRows>
  struct Sums {
    // As they were left in `sums`, or zeros.
    explicit Sums(const float* sums) {
#pragma GCC unroll 12
      for (int row = 0; row < kRows; ++row) {
        of[row][0] = sums == nullptr ? Floats{} : load_vector<Floats>(sums + row * kPanelColumns);
        of[row][1] =
            sums == nullptr ? Floats{} : load_vector<Floats>(sums + row * kPanelColumns + kLanes);
      }
    }

    // Adds the products of each row's pair at `x`, rows being `stride` words apart.
    void add(const uint32_t* x, int64_t stride, Words left, Words right) {
#pragma GCC unroll 12
      for (int row = 0; row < kRows; ++row) {
        of[row][0] = PairWords::multiply_add(of[row][0], x[row * stride], left);
        of[row][1] = PairWords::multiply_add(of[row][1], x[row * stride], right);
      }
    }

    template <typename Order>
    void store(float* sums, const Order& order) const {
#pragma GCC unroll 12
      for (int row = 0; row < kRows; ++row, sums += kPanelColumns) {
        store_vector(sums, order(of[row][0]));
        store_vector(sums + kLanes, order(of[row][1]));
      }
    }

    Floats of[kRows][2];
  };

  template <int kRows>
  static void multiply_some(const LinearBlock<bfloat16>& block, int first_row) {
    if constexpr (kRows > 1) {
      if (block.num_rows - first_row < kRows) return multiply_some<kRows - 1>(block, first_row);
    }
    // What comes later is asked for once a block.
    multiply_rows<kRows>(block, first_row, first_row == 0 ? block.weight_ahead : Ahead{},
                         first_row == 0 ? block.x_ahead : Ahead{});
  }

  template <int kRows>
  static void multiply_rows(const LinearBlock<bfloat16>& block, int first_row, Ahead weight_ahead,
                            Ahead x_ahead) {
    const int64_t stride = block.row_bytes / static_cast<int64_t>(sizeof(uint32_t));
    const auto* x = reinterpret_cast<const uint32_t*>(block.x) + first_row * stride;
    const bfloat16* weight = block.weight;
    float* sums = block.sums + first_row * kPanelColumns;
    Sums<kRows> sum(block.add ? sums : nullptr);
    for (int step = 0; step < block.num_steps; ++step, weight += kStepElements) {
      weight_ahead.fetch();
      x_ahead.fetch();
#pragma GCC unroll 4
      for (int pair = 0; pair < kStepPairs; ++pair, ++x) {
        const bfloat16* left = weight + pair * 2 * kTileColumns;
        sum.add(x, stride, load_vector<Words>(left), load_vector<Words>(left + kStepElements / 2));
      }
    }
    sum.store(sums, [](Floats each) { return each; });
  }

  template <int kRows, int kBits>
  static void multiply_direct(const LinearBlock<bfloat16>& block, const BlockStep<kBits>* from) {
    if constexpr (kRows > 1) {
      if (block.num_rows < kRows) return multiply_direct<kRows - 1>(block, from);
    }
    constexpr int kTileBytes = kStepElements / 2 * kBits / 8;
    const int64_t stride = block.row_bytes / static_cast<int64_t>(sizeof(uint32_t));
    const auto* x = reinterpret_cast<const uint32_t*>(block.x);
    Sums<kRows> sum(nullptr);
    for (const auto* end = from + block.num_steps; from < end; ++from) {
      PairExpand::ask_for_later(from);
      const PairScales left(from->scales), right(from->scales + kTileColumns);
#pragma GCC unroll 8
      for (int at = 0; at < kTileBytes; at += 64) {
        const PairNumbers<kBits> of_left(from->bytes + at);
        const PairNumbers<kBits> of_right(from->bytes + kTileBytes + at);
        x = add_vectors<0>(&sum, x, stride, left, of_left, right, of_right);
      }
    }
    sum.store(block.sums, [](Floats each) {
      return reinterpret_cast<Floats>(in_order(reinterpret_cast<__m512i>(each)));
    });
  }

  template <int kVector, int kRows, typename Numbers>
  static const uint32_t* add_vectors(Sums<kRows>* sum, const uint32_t* x, int64_t stride,
                                     const PairScales& left, const Numbers& of_left,
                                     const PairScales& right, const Numbers& of_right) {
    sum->add(x, stride, of_left.template weights<kVector>(left),
             of_right.template weights<kVector>(right));
    if constexpr (kVector + 1 < Numbers::kVectors) {
      return add_vectors<kVector + 1>(sum, x + 1, stride, left, of_left, right, of_right);
    }
    return x + 1;
  }

  // Some steps at once, since the sums are put down between them.
  template <typename Expand, typename Step>
  void multiply_ring(LinearBlock<bfloat16> block, const Step* from) const {
    auto* ring = const_cast<bfloat16*>(block.weight);
    for (int left = block.num_steps; left > 0; left -= block.num_steps) {
      block.num_steps = left < kExpandedSteps ? left : kExpandedSteps;
      for (int i = 0; i < block.num_steps; ++i) {
        Expand::template step<false>(from++, ring + i * kStepElements);
      }
      multiply(block);
      block.add = true;
      block.x += block.num_steps * kStepProducts;
    }
  }
};

}  // namespace

template <typename Step>
void multiply_blocks_by_pairs(const LinearGroup<bfloat16, Step>& group, bfloat16* scratch) {
  BlockProduct<PairTiles, PairExpand, Step>(group, scratch).run();
}

template void multiply_blocks_by_pairs(const LinearGroup<bfloat16, ByteStep>&, bfloat16*);
template void multiply_blocks_by_pairs(const LinearGroup<bfloat16, NibbleStep>&, bfloat16*);

void multiply_by_pairs(const LinearGroup<bfloat16>& group) { GroupProduct<PairTiles>(group).run(); }

}  // namespace legokv::cpu
