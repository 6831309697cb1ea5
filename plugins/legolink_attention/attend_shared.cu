#include "legokv/device.h"
#include "legolink_attention/head_sizes.h"
#include "legolink_attention/kernels.h"
#include "legolink_attention/tile_block.cuh"

namespace legokv {
namespace {

// One tile of the list, cut to what the other lists have, whatever it says.
struct SharedTile {
  int first_page;
  int num_pages;
  int first_member;
  int num_rows;  // of one KV head
};

LEGOKV_DEVICE SharedTile shared_tile(const LegokvLegolinkAttention& a, int64_t number) {
  const PageRow listed = reinterpret_cast<const PageRow*>(a.shared_tiles)[number];
  const int first_page = listed.page, first_member = listed.first_position;
  if (first_page < 0 || first_page >= a.num_shared_pages || first_member < 0 ||
      first_member >= a.num_shared_members) {
    return {};
  }
  const int pages_left = a.num_shared_pages - first_page;
  const int members_left = a.num_shared_members - first_member;
  const int heads = heads_per_kv_head(a), most = kTileRows / heads;
  const int members = listed.filled < members_left ? listed.filled : members_left;
  return {first_page, listed.base < pages_left ? listed.base : pages_left, first_member,
          (members < most ? members : most) * heads};
}

// A member's query of one head: what it is turned by is how far it stands behind its own base. What
// isn't there has no row: nothing is read or written for it.
LEGOKV_DEVICE TileRow shared_row(const LegokvLegolinkAttention& a, const SharedTile& tile,
                                 int kv_head, int row) {
  if (row >= tile.num_rows) return {-1, INT32_MIN, 0};
  const int heads = heads_per_kv_head(a);
  const PageRow member =
      reinterpret_cast<const PageRow*>(a.shared_members)[tile.first_member + row / heads];
  const int token = member.page, place = member.first_position;
  if (token < 0 || token >= a.num_tokens || place < 0 || place >= a.num_shared_members) {
    return {-1, INT32_MIN, 0};
  }
  const int head = kv_head * heads + row % heads;
  return {query_offset(a, token, head), a.positions[token] - member.base,
          place * a.num_heads + head};
}

// All of a tile's pages: they stand before every position, so no row sees less of them.
LEGOKV_DEVICE StripWalk walk_shared(const LegokvLegolinkAttention& a, const SharedTile& tile) {
  const int strips_per_page = a.page_size / kStripKeys;
  StripWalk walk = {};
  walk.rows = reinterpret_cast<const PageRow*>(a.shared_pages) + tile.first_page;
  walk.num_pool_pages = a.num_pool_pages;
  walk.strips_per_page = strips_per_page;
  walk.end = tile.num_pages * strips_per_page;
  walk.next_run = walk.end_run = walk.end;
  return walk;
}

// Where a tile's rows leave their results.
template <typename T>
struct SharedResults {
  const Partials all;
  int head_size;

  LEGOKV_DEVICE void store_state(int64_t row, const SoftmaxState& state) const {
    all.maxima[row] = state.max;
    all.sums[row] = state.sum;
  }

  LEGOKV_DEVICE void store_values(int64_t row, int dimension, const float (&values)[2],
                                  float) const {
    *reinterpret_cast<Vector<float, 2>*>(all.values + row * head_size +
                                         dimension) = {{values[0], values[1]}};
  }
};

// One block attends for up to 128 rows of several sequences, each turned to its own base, over
// pages that all of them see whole. It leaves partial results by member and head.
template <typename T, int kHeadSize>
LEGOKV_KERNEL(kTileThreads)
attend_shared_kernel(LEGOKV_PARAMETER AttentionCall call) {
  const LegokvLegolinkAttention& a = call.arguments;
  auto& memory = *reinterpret_cast<TileMemory<T, kHeadSize>*>(device::shared_memory());
  const SharedTile tile = shared_tile(a, device::block_x());
  if (tile.num_rows <= 0) return;
  const int thread = device::thread_index();
  if (thread < kHeadSize / 2) memory.inv_freq[thread] = a.inv_freq[thread];
  if (thread < kTileRows) memory.rows[thread] = shared_row(a, tile, device::block_y(), thread);
  attend_listed(a, walk_shared(a, tile), SharedResults<T>{shared_partials(call), kHeadSize},
                &memory);
}

template <typename T, int kHeadSize>
Status launch_typed(const AttentionCall& call, void* stream) {
  const LegokvLegolinkAttention& a = call.arguments;
  const LaunchShape shape = {a.num_shared_tiles, a.num_kv_heads, 1, kTileThreads,
                             static_cast<int>(sizeof(TileMemory<T, kHeadSize>))};
  return device::launch(attend_shared_kernel<T, kHeadSize>, shape, stream, call);
}

}  // namespace

Status launch_attend_shared(const AttentionCall& call, void* stream) {
  return with_head_size(call.arguments.head_size, [&](auto size) {
    constexpr int kHeadSize = decltype(size)::value;
    return call.arguments.dtype == LEGOKV_FLOAT16 ? launch_typed<float16, kHeadSize>(call, stream)
                                                  : launch_typed<bfloat16, kHeadSize>(call, stream);
  });
}

}  // namespace legokv
