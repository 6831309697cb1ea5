// One warp lists the strips that a tile sees; all warps of the block take them from the list.
#pragma once

#include "legokv/device.h"
#include "legolink_attention/strips.cuh"

namespace legokv {

struct alignas(16) ListedStrip {
  int32_t base;
  int32_t first_position;
  int32_t num_keys;  // 1 ... kStripKeys; 0: the list has ended
  const void* keys;  // where the first of them lies in the pool
};

// Strips by their number modulo the list's length: those of a stage and of the next two, and what
// one look at 32 strips adds to them.
constexpr int kListStrips = 64;

struct StripList {
  ListedStrip strips[kListStrips];

  LEGOKV_DEVICE ListedStrip& at(unsigned number) { return strips[number % kListStrips]; }
  LEGOKV_DEVICE const ListedStrip& at(unsigned number) const {
    return strips[number % kListStrips];
  }
};

// What the listing warp knows. Other warps may read what it has listed after the next barrier.
template <typename T, int kStrips>
struct StripLister {
  static_assert(4 * kStrips + kWarpLanes <= kListStrips);

  const LegokvLegolinkAttention& a;
  int kv_head;
  StripWalk walk;
  StripList* list;
  int num_listed = 0;

  // Lists on until `number` strips or all are in the list; behind the last come some of no keys.
  LEGOKV_DEVICE void list_until(int number) {
    while (num_listed < number) {
      if (walk.next >= walk.end) return end_list();
      list_window();
    }
  }

  LEGOKV_DEVICE void list_window() {
    const int lane = device::thread_index() % kWarpLanes, mine = walk.next + lane;
    const KeyStrip strip = mine < walk.end ? walk.strip_of(mine) : KeyStrip{};
    const uint32_t seen = device::ballot(strip.num_keys > 0);
    if (strip.num_keys > 0) {
      const int before = device::count_bits(seen & ((uint32_t{1} << lane) - 1));
      list->at(num_listed + before) = {strip.base, strip.first_position, strip.num_keys,
                                       first_key<T>(a, strip, kv_head)};
    }
    num_listed += device::count_bits(seen);
    walk.next += kWarpLanes;
    if (walk.next >= walk.end) walk.begin_next_run();
  }

  LEGOKV_DEVICE void end_list() {
    const int lane = device::thread_index() % kWarpLanes;
    if (lane < kStrips) list->at(num_listed + lane).num_keys = 0;
    num_listed = INT32_MAX;
  }
};

}  // namespace legokv
