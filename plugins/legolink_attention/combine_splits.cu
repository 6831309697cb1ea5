#include "legokv/device.h"
#include "legokv/dtype.h"
#include "legolink_attention/kernels.h"
#include "legolink_attention/results.cuh"

namespace legokv {
namespace {

constexpr int kThreads = 128;

// One thread puts together one dimension of one query row. A split that saw no key has sum 0 and
// maximum -infinity: its weight is 0, unless no split saw any, and then the result is 0.
template <typename T>
LEGOKV_KERNEL(kThreads)
combine_splits_kernel(LEGOKV_PARAMETER AttentionCall call) {
  const Partials all = partials(call);
  const int head_size = call.arguments.head_size;
  const int64_t item = device::block_x() * kThreads + device::thread_index();
  if (item >= all.num_rows * head_size) return;
  const int64_t row = item / head_size;

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
  static_cast<T*>(call.arguments.out)[item] = from_float<T>(value * normalizer(sum));
}

}  // namespace

Status launch_combine_splits(const AttentionCall& call, void* stream) {
  const LegokvLegolinkAttention& a = call.arguments;
  const int64_t items = int64_t{a.num_tokens} * a.num_heads * a.head_size;
  const LaunchShape shape = {(items + kThreads - 1) / kThreads, 1, 1, kThreads, 0};
  return with_dtype(a.dtype, [&](auto number) {
    return device::launch(combine_splits_kernel<decltype(number)>, shape, stream, call);
  });
}

}  // namespace legokv
