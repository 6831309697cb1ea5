// The query side of the tensor-core kernel: which rows a tile has, and rotating them to a base.
#pragma once

#include "legokv/device.h"
#include "legokv/rotation.h"
#include "legolink_attention/attention_shape.h"
#include "legolink_attention/plan.h"
#include "legolink_attention/strips.cuh"

namespace legokv {

constexpr int kTileWarps = 4;
// Left rows of one tensor-core product, and of those of all warps at once: a group of rows.
constexpr int kProductRows = 16;
constexpr int kGroupRows = kTileWarps * kProductRows;

constexpr int kTileGroups = kTileRows / kGroupRows;

// Strips of 16 keys that are in shared memory at once, and as many on their way: what the 99 KiB of
// small GPUs leave beside the query, and what registers for the scores are left.
template <int kHeadSize>
constexpr int kStageStrips = kHeadSize > 80 ? 2 : 4;

// One query row of a tile: a token's query of one of the heads that share a KV head.
struct alignas(16) TileRow {
  int64_t query;     // where it begins in q; -1: the tile has no such row
  int32_t position;  // INT32_MIN without a row
  int32_t result;    // its row of `out` seen as [T * H, D]
};

LEGOKV_DEVICE TileRow tile_row(const LegokvLegolinkAttention& a, const QueryTile& tile, int kv_head,
                               int row) {
  if (row >= tile.num_rows) return {-1, INT32_MIN, 0};
  const int heads = heads_per_kv_head(a), number = tile.first_row + row;
  const int token = tile.token + number / heads, head = kv_head * heads + number % heads;
  return {query_offset(a, token, head), a.positions[token], token * a.num_heads + head};
}

// Positions ascend within a sequence, so the last row's sees the most.
LEGOKV_DEVICE int last_position(const LegokvLegolinkAttention& a, const QueryTile& tile) {
  const int last_row = tile.first_row + tile.num_rows - 1;
  return a.positions[tile.token + last_row / heads_per_kv_head(a)];
}

// A tile's rotated rows. Two groups share each key that comes from shared memory, but leave a warp
// no registers for its query: it is read from here for each stage.
template <typename T, int kHeadSize>
struct alignas(16) TileQuery {
  T numbers[kTileRows][StripBuffer<T, kHeadSize>::kStride];
};

// Rotates a lane's part of one row to a base and scales it, so that its products with keys are
// scores in base 2. Of every 8 dimensions a lane has the two at 2 * (lane % 4), so those that turn
// together are its own: they stay in registers until they are rotated. A row that isn't there gets
// zeros, or no numbers if q begins with such: its results go nowhere.
template <typename T, int kHeadSize>
LEGOKV_DEVICE void turn_row(const LegokvLegolinkAttention& a, const TileRow& row, int base,
                            const float* inv_freq, T* turned_row) {
  constexpr int kPairs = kHeadSize / 2;
  const bool exists = row.query >= 0;
  const int first = device::thread_index() % 4 * 2, distance = exists ? row.position - base : 0;
  const T* q = static_cast<const T*>(a.q) + (exists ? row.query : 0);
  const float scale = exists ? a.scale * kLog2e : 0;
#pragma unroll
  for (int pair = first; pair < kPairs; pair += 8) {
    const auto low = *reinterpret_cast<const Vector<T, 2>*>(q + pair);
    const auto high = *reinterpret_cast<const Vector<T, 2>*>(q + pair + kPairs);
    Pair turned[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      turned[i] = rotate(quick_rotation_by(distance, inv_freq[pair + i]),
                         {to_float(low.values[i]) * scale, to_float(high.values[i]) * scale});
    }
    *reinterpret_cast<uint32_t*>(turned_row + pair) =
        pack_pair<T>(turned[0].first, turned[1].first);
    *reinterpret_cast<uint32_t*>(turned_row + pair + kPairs) =
        pack_pair<T>(turned[0].second, turned[1].second);
  }
}

}  // namespace legokv
