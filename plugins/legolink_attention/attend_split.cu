#include <type_traits>

#include "legokv/device.h"
#include "legokv/dtype.h"
#include "legolink_attention/head_sizes.h"
#include "legolink_attention/kernels.h"
#include "legolink_attention/results.cuh"
#include "legolink_attention/split_products.cuh"
#include "legolink_attention/split_warp.cuh"

namespace legokv {
namespace {

// On tensor cores in 16-bit types, and in float32, which they have not, without.
template <typename T>
constexpr bool kOnTensorCores = sizeof(T) == 2;

template <typename T, int kHeadSize, int kRows>
using SplitMemory = std::conditional_t<kOnTensorCores<T>, ProductMemory<T, kHeadSize>,
                                       WarpMemory<T, kHeadSize, kRows>>;
template <typename T, int kHeadSize, int kRows>
using SplitWarp = std::conditional_t<kOnTensorCores<T>, WarpProducts<T, kHeadSize>,
                                     WarpAttention<T, kHeadSize, kRows>>;

// Threads of the block put the warps' results together, two dimensions of a row at a time.
template <typename T, int kHeadSize, int kRows>
LEGOKV_DEVICE void merge_warps(const AttentionCall& call, const QueryRows& rows,
                               const SplitMemory<T, kHeadSize, kRows>* warps) {
  constexpr int kPairs = kHeadSize / 2;
  for (int item = device::thread_index(); item < rows.num_heads * kPairs;
       item += kSplitWarps<T> * kWarpLanes) {
    const int row = item / kPairs, dimension = item % kPairs * 2;
    SoftmaxState state = {-INFINITY, 0};
    for (int warp = 0; warp < kSplitWarps<T>; ++warp)
      state.max = fmaxf(state.max, warps[warp].states[row].max);
    float values[2] = {};
    for (int warp = 0; warp < kSplitWarps<T>; ++warp) {
      const SoftmaxState part = warps[warp].states[row];
      if (part.sum == 0) continue;
      const float weight = device::exp2(part.max - state.max);
      state.sum += part.sum * weight;
      const float* sums = warps[warp].sums() + row * kHeadSize + dimension;
      values[0] += sums[0] * weight;
      values[1] += sums[1] * weight;
    }
    const int num_heads = call.arguments.num_heads;
    const ResultRow place = {result_row(call.arguments, rows, row),
                             rows.place * num_heads + rows.first_head + row};
    store_values<T>(call, place, dimension, values, state.sum);
    if (dimension == 0) store_state(call, place, state);
  }
}

// One block attends for up to kRows query heads of one token that share a KV head, over one split
// of the keys; its warps take consecutive parts of that split and need each other only at the end.
template <typename T, int kHeadSize, int kRows>
LEGOKV_KERNEL(kSplitWarps<T>* kWarpLanes)
attend_split_kernel(LEGOKV_PARAMETER AttentionCall call) {
  const LegokvLegolinkAttention& a = call.arguments;
  auto* warps = reinterpret_cast<SplitMemory<T, kHeadSize, kRows>*>(device::shared_memory());
  const int warp = device::thread_index() / kWarpLanes;
  const QueryRows rows = query_rows<kRows>(call);
  if (rows.token < 0) return;
  SplitWarp<T, kHeadSize, kRows> attention(a, rows, warps[warp]);
  attend<T>(attention,
            walk_strips(a, rows.sequence, rows.position, device::block_z() * kSplitWarps<T> + warp,
                        call.plan.num_splits * kSplitWarps<T>));
  attention.finish();
  device::sync_block();
  merge_warps<T, kHeadSize, kRows>(call, rows, warps);
}

template <typename T, int kHeadSize, int kRows>
Status launch_rows(const AttentionCall& call, void* stream) {
  const LegokvLegolinkAttention& a = call.arguments;
  const int tiles = (heads_per_kv_head(a) + kRows - 1) / kRows;
  static_assert(kSplitWarps<T> * sizeof(SplitMemory<T, kHeadSize, kRows>) <= kMaxSharedBytes);
  const int shared_bytes =
      kSplitWarps<T> * static_cast<int>(sizeof(SplitMemory<T, kHeadSize, kRows>));
  const int64_t places = partial_rows(a, call.plan) / a.num_heads;
  const LaunchShape shape = {places * tiles, a.num_kv_heads, call.plan.num_splits,
                             kSplitWarps<T> * kWarpLanes, shared_bytes};
  return device::launch(attend_split_kernel<T, kHeadSize, kRows>, shape, stream, call);
}

template <typename T, int kHeadSize>
Status launch_head_size(const AttentionCall& call, void* stream) {
  if constexpr (kOnTensorCores<T>) {
    return launch_rows<T, kHeadSize, kProductColumns>(call, stream);
  } else {
    const int heads = heads_per_kv_head(call.arguments);
    if (heads == 1) return launch_rows<T, kHeadSize, 1>(call, stream);
    if (heads <= 4) return launch_rows<T, kHeadSize, 4>(call, stream);
    return launch_rows<T, kHeadSize, kMaxSplitRows>(call, stream);
  }
}

}  // namespace

Status launch_attend_split(const AttentionCall& call, void* stream) {
  return with_dtype(call.arguments.dtype, [&](auto number) {
    return with_head_size(call.arguments.head_size, [&](auto head_size) {
      return launch_head_size<decltype(number), decltype(head_size)::value>(call, stream);
    });
  });
}

}  // namespace legokv
