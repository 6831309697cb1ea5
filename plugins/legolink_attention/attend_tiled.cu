#include "legokv/device.h"
#include "legolink_attention/head_sizes.h"
#include "legolink_attention/kernels.h"
#include "legolink_attention/strips.cuh"
#include "legolink_attention/tile_warp.cuh"

namespace legokv {
namespace {

constexpr int kThreads = kTileWarps * kWarpLanes;

LEGOKV_HOST_DEVICE int64_t num_tiles(const LegokvLegolinkAttention& a) {
  return max_tiles(a.num_tokens, a.num_sequences, heads_per_kv_head(a), kTileRows);
}

// All threads of the block take the next strips and start their copies.
template <typename T, int kHeadSize>
LEGOKV_DEVICE StageStrips start_stage(const LegokvLegolinkAttention& a, int kv_head,
                                      StripWalk* walk, int buffer,
                                      TileMemory<T, kHeadSize>* memory) {
  StageStrips stage;
#pragma unroll
  for (int i = 0; i < kStageStrips; ++i) {
    walk->take(&stage.strips[i]);
    start_strip_copies(a, stage.strips[i], kv_head, device::thread_index(), kThreads,
                       &memory->keys[buffer][i], &memory->values[buffer][i]);
  }
  device::commit_copies();
  return stage;
}

// One block attends for a tile of 64 query rows over one split of the keys that the tile can see,
// 64 keys at a time, the next 64 on their way meanwhile. Each warp has 16 rows and rotates them
// again whenever the walk comes to another chunk.
template <typename T, int kHeadSize>
LEGOKV_KERNEL(kThreads)
attend_tiled_kernel(LEGOKV_PARAMETER AttentionCall call) {
  const LegokvLegolinkAttention& a = call.arguments;
  auto& memory = *reinterpret_cast<TileMemory<T, kHeadSize>*>(device::shared_memory());
  const int heads = heads_per_kv_head(a), kv_head = device::block_y();
  // Later tiles of a chunk see more keys: the longest begin first, and none is left for the end.
  const int64_t tile = num_tiles(a) - 1 - device::block_x();
  const TileRows rows = {query_tile(sequences(a), tile, heads, kTileRows), kv_head, heads};
  if (rows.tile.num_rows == 0) return;
  const int few = call.plan.few_tokens;
  if (few > 0 && has_few_tokens(sequences(a), rows.tile.sequence, few)) return;
  StripWalk walk = walk_strips(a, rows.tile.sequence, last_position(a, rows), device::block_z(),
                               call.plan.num_splits);
  WarpTile<T, kHeadSize> warp(a, rows, memory);
  int buffer = 0;
  StageStrips stage = start_stage(a, kv_head, &walk, buffer, &memory);
  while (stage.strips[0].num_keys > 0) {
    const StageStrips next = start_stage(a, kv_head, &walk, buffer ^ 1, &memory);
    device::wait_copies<1>();
    device::sync_block();
    warp.take(stage, buffer);
    device::sync_block();
    stage = next;
    buffer ^= 1;
  }
  warp.finish(call);
}

template <typename T, int kHeadSize>
Status launch_typed(const AttentionCall& call, void* stream) {
  static_assert(sizeof(TileMemory<T, kHeadSize>) <= kMaxSharedBytes);
  const LegokvLegolinkAttention& a = call.arguments;
  const LaunchShape shape = {num_tiles(a), a.num_kv_heads, call.plan.num_splits, kThreads,
                             static_cast<int>(sizeof(TileMemory<T, kHeadSize>))};
  return device::launch(attend_tiled_kernel<T, kHeadSize>, shape, stream, call);
}

}  // namespace

Status launch_attend_tiled(const AttentionCall& call, void* stream) {
  return with_head_size(call.arguments.head_size, [&](auto size) {
    constexpr int kHeadSize = decltype(size)::value;
    return call.arguments.dtype == LEGOKV_FLOAT16 ? launch_typed<float16, kHeadSize>(call, stream)
                                                  : launch_typed<bfloat16, kHeadSize>(call, stream);
  });
}

}  // namespace legokv
