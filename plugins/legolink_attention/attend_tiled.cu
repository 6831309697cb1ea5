#include "legokv/device.h"
#include "legolink_attention/head_sizes.h"
#include "legolink_attention/kernels.h"
#include "legolink_attention/strip_list.cuh"
#include "legolink_attention/tile_warp.cuh"

namespace legokv {
namespace {

constexpr int kThreads = kTileWarps * kWarpLanes;

LEGOKV_HOST_DEVICE int64_t num_tiles(const LegokvLegolinkAttention& a) {
  return max_tiles(a.num_tokens, a.num_sequences, heads_per_kv_head(a), kTileRows);
}

// What all warps of the block read: the tile's rows, and the rotation's frequencies.
template <typename T, int kHeadSize>
LEGOKV_DEVICE void fill_memory(const LegokvLegolinkAttention& a, const QueryTile& tile,
                               TileMemory<T, kHeadSize>* memory) {
  static_assert(kTileRows <= kThreads && kHeadSize / 2 <= kThreads);
  const int thread = device::thread_index();
  if (thread < kHeadSize / 2) memory->inv_freq[thread] = a.inv_freq[thread];
  if (thread < kTileRows) {
    memory->rows[thread] = tile_row(a, tile, device::block_y(), thread);
  }
}

// All threads of the block start the copies of the listed strips from `first` on, as many as a
// stage has that are of one base.
template <typename T, int kHeadSize>
LEGOKV_DEVICE TileStage start_stage(const LegokvLegolinkAttention& a, int first, int buffer,
                                    TileMemory<T, kHeadSize>* memory) {
  constexpr int kStrips = kStageStrips<kHeadSize>, kStripThreads = kThreads / kStrips;
  const int base = memory->list.at(first).base;
  int num_strips = 0;
  bool goes_on = true;
#pragma unroll
  for (int i = 0; i < kStrips; ++i) {
    const ListedStrip& strip = memory->list.at(first + i);
    goes_on = goes_on && strip.num_keys > 0 && strip.base == base;
    num_strips += goes_on;
  }
  const int mine = device::thread_index() / kStripThreads;
  if (mine < num_strips) {
    const ListedStrip& strip = memory->list.at(first + mine);
    start_strip_copies<kStripThreads>(a, static_cast<const T*>(strip.keys), strip.num_keys,
                                      device::thread_index() % kStripThreads,
                                      &memory->keys[buffer][mine], &memory->values[buffer][mine]);
  }
  device::commit_copies();
  return {first, num_strips, base};
}

// One block attends for a tile of query rows over one split of the keys that the tile can see,
// stage by stage, the next one on its way meanwhile. The first warp lists the strips. Each warp has
// 16 rows of every group and rotates them again whenever the list comes to another chunk.
template <typename T, int kHeadSize>
LEGOKV_KERNEL(kThreads)
attend_tiled_kernel(LEGOKV_PARAMETER AttentionCall call) {
  const LegokvLegolinkAttention& a = call.arguments;
  auto& memory = *reinterpret_cast<TileMemory<T, kHeadSize>*>(device::shared_memory());
  // Later tiles of a chunk see more keys: the longest begin first, and none is left for the end.
  const int64_t number = num_tiles(a) - 1 - device::block_x();
  const QueryTile tile = query_tile(sequences(a), number, heads_per_kv_head(a), kTileRows);
  if (tile.num_rows == 0) return;
  const int few = call.plan.few_tokens;
  if (few > 0 && has_few_tokens(sequences(a), tile.sequence, few)) return;
  fill_memory(a, tile, &memory);
  constexpr int kStrips = kStageStrips<kHeadSize>;
  StripLister<T, kStrips> lister = {a, device::block_y(),
                                    walk_strips(a, tile.sequence, last_position(a, tile),
                                                device::block_z(), call.plan.num_splits),
                                    &memory.list};
  const bool lists = device::thread_index() < kWarpLanes;
  if (lists) lister.list_until(2 * kStrips);
  device::sync_block();
  WarpTile<T, kHeadSize> warp(a, memory);
  int buffer = 0;
  TileStage stage = start_stage(a, 0, buffer, &memory);
  while (stage.num_strips > 0) {
    device::wait_copies<0>();
    // From here on all see this stage, and none reads the one before.
    device::sync_block();
    const TileStage next = start_stage(a, stage.first + stage.num_strips, buffer ^ 1, &memory);
    if (lists) lister.list_until(next.first + 2 * kStrips);
    warp.take(stage, buffer);
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
