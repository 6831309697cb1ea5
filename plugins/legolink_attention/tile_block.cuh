// One block of a tensor-core kernel: stage by stage over listed strips, the next one on its way
// meanwhile.
#pragma once

#include "legokv/device.h"
#include "legolink_attention/strip_list.cuh"
#include "legolink_attention/tile_warp.cuh"

namespace legokv {

constexpr int kTileThreads = kTileWarps * kWarpLanes;

// All threads of the block start the copies of the listed strips from `first` on, as many as a
// stage has that are of one base.
template <typename T, int kHeadSize>
LEGOKV_DEVICE TileStage start_stage(const LegokvLegolinkAttention& a, int first, int buffer,
                                    TileMemory<T, kHeadSize>* memory) {
  constexpr int kStrips = kStageStrips<kHeadSize>, kStripThreads = kTileThreads / kStrips;
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

// The block's rows attend over the strips of the walk, which the first warp lists. Each warp has 16
// rows of every group and rotates them again whenever the list comes to another base. `memory` has
// the rows and the frequencies once the block's threads have met here.
template <typename T, int kHeadSize, typename Results>
LEGOKV_DEVICE void attend_listed(const LegokvLegolinkAttention& a, const StripWalk& walk,
                                 const Results& results, TileMemory<T, kHeadSize>* memory) {
  constexpr int kStrips = kStageStrips<kHeadSize>;
  StripLister<T, kStrips> lister = {a, device::block_y(), walk, &memory->list};
  const bool lists = device::thread_index() < kWarpLanes;
  if (lists) lister.list_until(2 * kStrips);
  device::sync_block();
  WarpTile<T, kHeadSize> warp(a, *memory);
  int buffer = 0;
  TileStage stage = start_stage(a, 0, buffer, memory);
  while (stage.num_strips > 0) {
    device::wait_copies<0>();
    // From here on all see this stage, and none reads the one before.
    device::sync_block();
    const TileStage next = start_stage(a, stage.first + stage.num_strips, buffer ^ 1, memory);
    if (lists) lister.list_until(next.first + 2 * kStrips);
    warp.take(stage, buffer);
    stage = next;
    buffer ^= 1;
  }
  warp.finish(results);
}

}  // namespace legokv
