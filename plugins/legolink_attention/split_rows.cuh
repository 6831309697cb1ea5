// What both forms of the split kernel share: a block's query rows, and a warp's walk.
#pragma once

#include "legokv/device.h"
#include "legolink_attention/attention_shape.h"
#include "legolink_attention/plan.h"
#include "legolink_attention/strips.cuh"

namespace legokv {

constexpr int kSplitStages = 2;

// float32 strips are twice as large: half as many warps keep a block within every GPU's shared
// memory.
template <typename T>
constexpr int kSplitWarps = sizeof(T) == 4 ? 2 : 4;

// The query rows of a block: heads of one token that share a KV head.
struct QueryRows {
  int64_t place;  // of the token among those that the plan has places for
  int token;      // -1: there is none at this place
  int sequence;
  int position;
  int kv_head;
  int first_head;
  int num_heads;  // 1 ... kRows
};

template <int kRows>
LEGOKV_DEVICE QueryRows query_rows(const AttentionCall& call) {
  const LegokvLegolinkAttention& a = call.arguments;
  const int heads = heads_per_kv_head(a), tiles = (heads + kRows - 1) / kRows;
  const int few = call.plan.few_tokens;
  const int64_t place = device::block_x() / tiles;
  const int token = few > 0 ? token_at_place(sequences(a), place, few) : static_cast<int>(place);
  const int first = static_cast<int>(device::block_x() % tiles) * kRows;
  const int left = heads - first;
  if (token < 0) {
    QueryRows none = {};
    none.token = token;
    return none;
  }
  return {place,
          token,
          few > 0 ? static_cast<int>(place / few) : sequence_of_token(sequences(a), token),
          a.positions[token],
          device::block_y(),
          device::block_y() * heads + first,
          left < kRows ? left : kRows};
}

LEGOKV_DEVICE int64_t result_row(const LegokvLegolinkAttention& a, const QueryRows& rows, int row) {
  return int64_t{rows.token} * a.num_heads + rows.first_head + row;
}

// A warp walks its strips, the next one on its way while one is used. `Warp` is one of the forms:
// it has `a`, `rows`, `memory` and `lane`, rotate_query(base), and take(strip, stage), which leaves
// the strip to be replaced once all lanes have come back.
template <typename T, typename Warp>
LEGOKV_DEVICE void attend(Warp& warp, StripWalk walk) {
  auto& memory = warp.memory;
  const auto start_copies = [&](const KeyStrip& strip, int stage) {
    if (strip.num_keys > 0) {
      start_strip_copies<kWarpLanes>(warp.a, first_key<T>(warp.a, strip, warp.rows.kv_head),
                                     strip.num_keys, warp.lane, &memory.keys[stage],
                                     &memory.values[stage]);
    }
    device::commit_copies();
  };
  KeyStrip strip, next;
  bool rotated = false;
  int rotated_base = 0, stage = 0;
  bool more = walk.take(&strip);
  start_copies(strip, 0);
  while (more) {
    more = walk.take(&next);
    start_copies(next, stage ^ 1);
    if (!rotated || strip.base != rotated_base) warp.rotate_query(strip.base);
    rotated = true;
    rotated_base = strip.base;
    device::wait_copies<1>();
    device::sync_warp();
    warp.take(strip, stage);
    device::sync_warp();
    strip = next;
    stage ^= 1;
  }
}

}  // namespace legokv
