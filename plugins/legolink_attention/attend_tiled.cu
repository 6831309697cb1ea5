#include "legokv/device.h"
#include "legolink_attention/head_sizes.h"
#include "legolink_attention/kernels.h"
#include "legolink_attention/tile_block.cuh"

namespace legokv {
namespace {

LEGOKV_HOST_DEVICE int64_t num_tiles(const LegokvLegolinkAttention& a) {
  return max_tiles(a.num_tokens, a.num_sequences, heads_per_kv_head(a), kTileRows);
}

// What all warps of the block read: the tile's rows, and the rotation's frequencies.
template <typename T, int kHeadSize>
LEGOKV_DEVICE void fill_memory(const LegokvLegolinkAttention& a, const QueryTile& tile,
                               TileMemory<T, kHeadSize>* memory) {
  static_assert(kTileRows <= kTileThreads && kHeadSize / 2 <= kTileThreads);
  const int thread = device::thread_index();
  if (thread < kHeadSize / 2) memory->inv_freq[thread] = a.inv_freq[thread];
  if (thread < kTileRows) {
    memory->rows[thread] = tile_row(a, tile, device::block_y(), thread);
  }
}

// Where a tile's rows leave their results: final ones, or those of one split.
template <typename T>
struct TiledResults {
  const AttentionCall& call;

  LEGOKV_DEVICE void store_state(int64_t row, const SoftmaxState& state) const {
    legokv::store_state(call, {row, row}, state);
  }

  LEGOKV_DEVICE void store_values(int64_t row, int dimension, const float (&values)[2],
                                  float sum) const {
    legokv::store_values<T>(call, {row, row}, dimension, values, sum);
  }
};

// One block attends for a tile of query rows over one split of the keys that the tile can see.
template <typename T, int kHeadSize>
LEGOKV_KERNEL(kTileThreads)
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
  const StripWalk walk = walk_strips(a, tile.sequence, last_position(a, tile), device::block_z(),
                                     call.plan.num_splits);
  attend_listed(a, walk, TiledResults<T>{call}, &memory);
}

template <typename T, int kHeadSize>
Status launch_typed(const AttentionCall& call, void* stream) {
  static_assert(sizeof(TileMemory<T, kHeadSize>) <= kMaxSharedBytes);
  const LegokvLegolinkAttention& a = call.arguments;
  const LaunchShape shape = {num_tiles(a), a.num_kv_heads, call.plan.num_splits, kTileThreads,
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
