// How an attention kernel hands over a query row: the final result, or one split's part of it.
#pragma once

#include "legokv/device.h"
#include "legolink_attention/partials.h"

namespace legokv {

// What a kernel knows of a row after its keys: the largest score (base 2) and the weights' sum.
struct SoftmaxState {
  float max;
  float sum;
};

// Where a query row's result goes: the row of `out` seen as [T * H, D], or that of the partials.
struct ResultRow {
  int64_t out;
  int64_t partial;
};

// 1 / sum, and 0 for a row that saw no key.
LEGOKV_DEVICE float normalizer(float sum) { return sum > 0 ? 1 / sum : 0; }

// Two neighbouring dimensions of a row, not yet divided by the sum.
template <typename T>
LEGOKV_DEVICE void store_values(const AttentionCall& call, const ResultRow& row, int dimension,
                                const float (&values)[2], float sum) {
  if (!call.plan.is_partial) {
    T* out = static_cast<T*>(call.arguments.out) + row.out * call.arguments.head_size + dimension;
    const float factor = normalizer(sum);
    *reinterpret_cast<Vector<T, 2>*>(out) = {
        {from_float<T>(values[0] * factor), from_float<T>(values[1] * factor)}};
    return;
  }
  const Partials all = partials(call);
  const int64_t place = device::block_z() * all.num_rows + row.partial;
  float* out = all.values + place * call.arguments.head_size + dimension;
  *reinterpret_cast<Vector<float, 2>*>(out) = {{values[0], values[1]}};
}

// By one thread of the row, where there are partial results.
LEGOKV_DEVICE void store_state(const AttentionCall& call, const ResultRow& row,
                               const SoftmaxState& state) {
  if (!call.plan.is_partial) return;
  const Partials all = partials(call);
  const int64_t place = device::block_z() * all.num_rows + row.partial;
  all.maxima[place] = state.max;
  all.sums[place] = state.sum;
}

}  // namespace legokv
