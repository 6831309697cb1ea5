#include "legokv/device.h"
#include "legokv/dtype.h"
#include "legolink_attention/attention_shape.h"
#include "legolink_attention/kernels.h"
#include "legolink_attention/results.cuh"

namespace legokv {
namespace {

constexpr int kThreads = 128;

// The row of `out` seen as [T * H, D] that partial results are of; -1 if they are no part's.
LEGOKV_DEVICE int64_t out_row(const AttentionCall& call, int64_t row) {
  const LegokvLegolinkAttention& a = call.arguments;
  const int few = call.plan.few_tokens;
  if (few == 0) return row;
  const int64_t place = row / a.num_heads;
  if (call.plan.regime == LEGOKV_SPLIT) {
    const int token = token_at_place(sequences(a), place, few);
    return token < 0 ? -1 : token * int64_t{a.num_heads} + row % a.num_heads;
  }
  const int sequence = sequence_of_token(sequences(a), static_cast<int>(place));
  return has_few_tokens(sequences(a), sequence, few) ? -1 : row;
}

// One thread puts together one dimension of one query row. A split that saw no key has sum 0 and
// maximum -infinity: its weight is 0, unless no split saw any, and then the result is 0.
template <typename T>
LEGOKV_KERNEL(kThreads)
combine_splits_kernel(LEGOKV_PARAMETER AttentionCall call) {
  const Partials all = partials(call);
  const int head_size = call.arguments.head_size;
  const int64_t item = device::block_x() * kThreads + device::thread_index();
  if (item >= all.num_rows * head_size) return;
  const int64_t row = item / head_size, result = out_row(call, row);
  if (result < 0) return;

  float max = -INFINITY;
  for (int split = 0; split < call.plan.num_splits; ++split) {
    max = fmaxf(max, all.maxima[split * all.num_rows + row]);
  }
  float sum = 0, value = 0;
  for (int split = 0; split < call.plan.num_splits; ++split) {
    const int64_t place = split * all.num_rows + row;
    if (all.sums[place] == 0) continue;
    const float weight = device::exp2(all.maxima[place] - max);
    sum += all.sums[place] * weight;
    value += all.values[split * all.num_rows * head_size + item] * weight;
  }
  T* out = static_cast<T*>(call.arguments.out) + result * head_size + item % head_size;
  *out = from_float<T>(value * normalizer(sum));
}

}  // namespace

Status launch_combine_splits(const AttentionCall& call, void* stream) {
  const LegokvLegolinkAttention& a = call.arguments;
  const int64_t items = partial_rows(a, call.plan) * a.head_size;
  const LaunchShape shape = {(items + kThreads - 1) / kThreads, 1, 1, kThreads, 0};
  return with_dtype(a.dtype, [&](auto number) {
    return device::launch(combine_splits_kernel<decltype(number)>, shape, stream, call);
  });
}

}  // namespace legokv
