// Walking the strips of a page table that a query can see, and bringing a strip into shared memory.
#pragma once

#include "legokv/device.h"
#include "legolink_attention/attention_shape.h"

namespace legokv {

constexpr int kWarpLanes = 32;
constexpr float kLog2e = 1.4426950408889634f;

// All lanes of a warp walk together: they look at 32 strips at once and take the seen ones in
// order. After one run of strips comes another.
struct StripWalk {
  const PageRow* rows;
  int64_t num_pool_pages;
  int strips_per_page;
  int query_position;  // the last position that is to see
  int next;            // first strip not looked at
  int end;
  int next_run;  // the run after that; none if it ends where it begins
  int end_run;
  int window = 0;
  uint32_t seen = 0;  // of the 32 strips from `window`

  // False if there is no further strip; `strip` has no keys then. Else its keys are those that the
  // query sees: what lies in later slots is never looked at, and need not be a number.
  LEGOKV_DEVICE bool take(KeyStrip* strip) {
    while (seen == 0 && next < end) {
      const int mine = next + device::thread_index() % kWarpLanes;
      seen = device::ballot(mine < end && strip_of(mine).num_keys > 0);
      window = next;
      next += kWarpLanes;
      if (next >= end) begin_next_run();
    }
    if (seen == 0) {
      *strip = KeyStrip{};
      return false;
    }
    *strip = strip_of(window + device::lowest_bit(seen));
    seen &= seen - 1;
    return true;
  }

  LEGOKV_DEVICE void begin_next_run() {
    next = next_run;
    end = next_run = end_run;
  }

  LEGOKV_DEVICE KeyStrip strip_of(int index) const {
    KeyStrip strip = strip_at(rows, num_pool_pages, strips_per_page, index);
    strip.num_keys = num_seen_keys(strip, query_position);
    return strip;
  }
};

// The walk over part `part` of `num_parts` of a sequence's table. Each gets as many of the strips
// that are seen, and then of the rest: a table that is filled up with rows without a page, or that
// goes on past the query, leaves no part without work.
LEGOKV_DEVICE StripWalk walk_strips(const LegokvLegolinkAttention& a, int sequence, int position,
                                    int part, int num_parts) {
  const TableRows table = table_rows(a, sequence);
  const int strips_per_page = a.page_size / kStripKeys;
  const int strips = table.num_rows * strips_per_page;
  const int seen = num_leading_rows(table.rows, table.num_rows, position) * strips_per_page;
  const int rest = strips - seen;
  StripWalk walk = {table.rows,
                    a.num_pool_pages,
                    strips_per_page,
                    position,
                    part_begin(seen, part, num_parts),
                    part_begin(seen, part + 1, num_parts),
                    seen + part_begin(rest, part, num_parts),
                    seen + part_begin(rest, part + 1, num_parts)};
  if (walk.next == walk.end) walk.begin_next_run();
  return walk;
}

// Keys or values of one strip in shared memory. The odd number of 16-byte units between rows keeps
// ldmatrix free of bank conflicts.
template <typename T, int kHeadSize>
struct alignas(16) StripBuffer {
  static constexpr int kStride = kHeadSize + Vector<T>::kSize;
  T numbers[kStripKeys][kStride];
};

// A strip's first key of one head.
template <typename T>
LEGOKV_DEVICE const T* first_key(const LegokvLegolinkAttention& a, const KeyStrip& strip,
                                 int kv_head) {
  return static_cast<const T*>(a.pool) +
         key_offset(pool_layout(a), strip.page, strip.first_slot, kv_head);
}

// Threads 0 ... kThreads-1 start the copies of the strip whose first key is `first`; keys past the
// filled ones become zeros, for a weight of 0 times whatever an unwritten slot holds need not be 0.
template <int kThreads, typename T, int kHeadSize>
LEGOKV_DEVICE void start_strip_copies(const LegokvLegolinkAttention& a, const T* first,
                                      int num_keys, int thread, StripBuffer<T, kHeadSize>* keys,
                                      StripBuffer<T, kHeadSize>* values) {
  constexpr int kSize = Vector<T>::kSize, kVectors = kHeadSize / kSize;
  const PoolLayout layout = pool_layout(a);
  // Within a page 32 bits are enough.
  const unsigned token = static_cast<unsigned>(token_stride(layout));
  const unsigned to_value = static_cast<unsigned>(value_distance(layout));
#pragma unroll 4
  for (int first_of_round = 0; first_of_round < kStripKeys * kVectors; first_of_round += kThreads) {
    const unsigned i = first_of_round + thread;
    if (kStripKeys * kVectors % kThreads != 0 && i >= kStripKeys * kVectors) break;
    const unsigned key = i / kVectors, dimension = i % kVectors * kSize;
    const T* source = first + (key * token + dimension);
    const bool valid = static_cast<int>(key) < num_keys;
    device::copy_async_16(&keys->numbers[key][dimension], source, valid);
    device::copy_async_16(&values->numbers[key][dimension], source + to_value, valid);
  }
}

}  // namespace legokv
