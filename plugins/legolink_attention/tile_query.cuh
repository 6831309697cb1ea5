// The query side of the tensor-core kernel: which rows a tile has, and rotating them to a base.
#pragma once

#include "legokv/device.h"
#include "legokv/rotation.h"
#include "legolink_attention/attention_shape.h"
#include "legolink_attention/plan.h"
#include "legolink_attention/strips.cuh"

namespace legokv {

constexpr int kTileWarps = 4;
constexpr int kWarpRows = kTileRows / kTileWarps;

// The rows of one tile: tokens of one sequence, each with the query heads that share a KV head.
struct TileRows {
  QueryTile tile;
  int kv_head;
  int heads_per_kv_head;

  LEGOKV_DEVICE bool has(int row) const { return row < tile.num_rows; }
  LEGOKV_DEVICE int token(int row) const {
    return tile.token + (tile.first_row + row) / heads_per_kv_head;
  }
  LEGOKV_DEVICE int head(int row) const {
    return kv_head * heads_per_kv_head + (tile.first_row + row) % heads_per_kv_head;
  }
  // In out seen as [T * H, D].
  LEGOKV_DEVICE int64_t result_row(int row, int num_heads) const {
    return int64_t{token(row)} * num_heads + head(row);
  }
};

// Positions ascend within a sequence, so the last row's sees the most.
LEGOKV_DEVICE int last_position(const LegokvLegolinkAttention& a, const TileRows& rows) {
  return a.positions[rows.token(rows.tile.num_rows - 1)];
}

// A tile's rotated rows in shared memory, zeros for rows it doesn't have.
template <typename T, int kHeadSize>
struct alignas(16) TileQuery {
  T numbers[kTileRows][StripBuffer<T, kHeadSize>::kStride];
};

// A warp rotates its own rows to a base. Lanes take pairs of dimensions; the angle is computed once
// for all heads of a token, and token and head are counted on, as a division a row takes longer
// than the rotation. Not inlined: it runs once a chunk and sincosf is long.
template <typename T, int kHeadSize>
LEGOKV_DEVICE_CALL void rotate_rows(const LegokvLegolinkAttention& a, const TileRows& rows,
                                    int first_row, int base, TileQuery<T, kHeadSize>* query) {
  constexpr int kPairs = kHeadSize / 2;
  const int heads = rows.heads_per_kv_head;
  const int first_token = rows.token(first_row);
  const int first_head = (rows.tile.first_row + first_row) % heads;
  const int64_t to_next_token = a.q_stride - int64_t{heads} * kHeadSize;
  const T* first = static_cast<const T*>(a.q) + query_offset(a, first_token, rows.head(first_row));
  for (int pair = device::thread_index() % kWarpLanes; pair < kPairs; pair += kWarpLanes) {
    const T* q = first + pair;
    int token = first_token, head = first_head;
    bool is_new_token = true;
    Rotation rotation = {};
    for (int row = first_row; row < first_row + kWarpRows; ++row) {
      Pair turned = {0, 0};
      if (rows.has(row)) {
        if (is_new_token) rotation = rotation_by(a.positions[token] - base, a.inv_freq[pair]);
        turned = rotate(rotation, {to_float(q[0]), to_float(q[kPairs])});
        q += kHeadSize;
        is_new_token = ++head == heads;
        if (is_new_token) {
          head = 0;
          ++token;
          q += to_next_token;
        }
      }
      query->numbers[row][pair] = from_float<T>(turned.first);
      query->numbers[row][pair + kPairs] = from_float<T>(turned.second);
    }
  }
}

}  // namespace legokv
