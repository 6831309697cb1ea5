// One warp's part of the split kernel on tensor cores: its strips, all query rows of the block, no
// other warp.
#pragma once

#include "legokv/device.h"
#include "legokv/rotation.h"
#include "legolink_attention/results.cuh"
#include "legolink_attention/split_rows.cuh"

namespace legokv {

// Keys are the left operand's 16 rows and query rows the right one's 8 columns: the other way round
// half of a tile or more would be empty.
constexpr int kProductColumns = 8;
static_assert(kProductColumns == kMaxSplitRows && kStripKeys == 16);

// One warp's own shared memory.
template <typename T, int kHeadSize>
struct ProductMemory {
  StripBuffer<T, kHeadSize> keys[kSplitStages];
  StripBuffer<T, kHeadSize> values[kSplitStages];
  Rotation turns[kHeadSize / 2];  // from the token's position to the base
  SoftmaxState states[kProductColumns];

  // Weighted sums of values [kProductColumns, D], where keys were.
  LEGOKV_DEVICE float* sums() { return reinterpret_cast<float*>(keys); }
  LEGOKV_DEVICE const float* sums() const { return reinterpret_cast<const float*>(keys); }
  static_assert(sizeof(keys) >= kProductColumns * kHeadSize * sizeof(float));
};

// A lane has query rows 2 * (lane % 4) and the next; of every 16 keys, and of every 16 dimensions
// of the sums, those at lane / 4 and lane / 4 + 8.
template <typename T, int kHeadSize>
struct WarpProducts {
  static constexpr int kSteps = kHeadSize / 16;  // of 16 dimensions
  static constexpr int kPairs = kHeadSize / 2;
  static constexpr int kHalf = kHeadSize / 16;  // runs of 8 dimensions in half a head

  const LegokvLegolinkAttention& a;
  const QueryRows& rows;
  ProductMemory<T, kHeadSize>& memory;
  int lane;
  // Of the row at lane / 4, from every 8 dimensions the two at 2 * (lane % 4).
  uint32_t query[2 * kSteps];
  SoftmaxState states[2];  // sums are of this lane's keys only until finish()
  float values[kSteps][4] = {};

  LEGOKV_DEVICE WarpProducts(const LegokvLegolinkAttention& arguments, const QueryRows& of,
                             ProductMemory<T, kHeadSize>& own)
      : a(arguments), rows(of), memory(own), lane(device::thread_index() % kWarpLanes) {
    for (SoftmaxState& state : states) state = {-INFINITY, 0};
  }

  // All rows are of one token, so one table of angles serves them all; the two dimensions that turn
  // together are the same lane's.
  LEGOKV_DEVICE void rotate_query(int base) {
    for (int pair = lane; pair < kPairs; pair += kWarpLanes) {
      memory.turns[pair] = rotation_by(rows.position - base, a.inv_freq[pair]);
    }
    device::sync_warp();
    const int row = lane / 4;
    const T* q = static_cast<const T*>(a.q) + query_offset(a, rows.token, rows.first_head + row);
#pragma unroll
    for (int run = 0; run < kHalf; ++run) {
      Pair turned[2] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int pair = run * 8 + lane % 4 * 2 + i;
        if (row < rows.num_heads) {
          turned[i] = rotate(memory.turns[pair], {to_float(q[pair]), to_float(q[pair + kPairs])});
        }
      }
      query[run] = pack_pair<T>(turned[0].first, turned[1].first);
      query[run + kHalf] = pack_pair<T>(turned[0].second, turned[1].second);
    }
  }

  // Products of the strip's keys with all rows.
  LEGOKV_DEVICE void multiply_keys(const StripBuffer<T, kHeadSize>& keys,
                                   float (&scores)[4]) const {
    const int key = lane % 16, dimension = lane / 16 * 8;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t matrices[4];
      device::load_matrices(matrices, &keys.numbers[key][step * 16 + dimension]);
      device::multiply_accumulate<T>(scores, matrices, {query[2 * step], query[2 * step + 1]});
    }
  }

  // Turns scores into weights and brings sums and values to the new maximum. A walked strip has a
  // key that is seen, so that is finite.
  LEGOKV_DEVICE void weigh(const KeyStrip& strip, float (&scores)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool seen = lane / 4 + i / 2 * 8 < strip.num_keys;
      scores[i] = seen ? scores[i] * (a.scale * kLog2e) : -INFINITY;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float max = fmaxf(states[i].max, fmaxf(scores[i], scores[i + 2]));
      for (int mask = 4; mask < kWarpLanes; mask *= 2) {
        max = fmaxf(max, device::shuffle_xor(max, mask));
      }
      const float keep = device::exp2(states[i].max - max);
      scores[i] = device::exp2(scores[i] - max);
      scores[i + 2] = device::exp2(scores[i + 2] - max);
      states[i] = {max, states[i].sum * keep + scores[i] + scores[i + 2]};
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        values[step][i] *= keep;
        values[step][i + 2] *= keep;
      }
    }
  }

  // Weights come out key by key and go in row by row.
  LEGOKV_DEVICE void add_values(const StripBuffer<T, kHeadSize>& strip, const float (&weights)[4]) {
    const uint32_t turned[2] = {device::transpose(pack_pair<T>(weights[0], weights[1])),
                                device::transpose(pack_pair<T>(weights[2], weights[3]))};
    const int key = lane / 16 * 8 + lane % 8, dimension = lane / 8 % 2 * 8;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t matrices[4];
      device::load_matrices_transposed(matrices, &strip.numbers[key][step * 16 + dimension]);
      device::multiply_accumulate<T>(values[step], matrices, turned);
    }
  }

  LEGOKV_DEVICE void take(const KeyStrip& strip, int stage) {
    float scores[4] = {};
    multiply_keys(memory.keys[stage], scores);
    weigh(strip, scores);
    add_values(memory.values[stage], scores);
  }

  // Leaves the warp's result in its shared memory, for all warps of the block.
  LEGOKV_DEVICE void finish() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      for (int mask = 4; mask < kWarpLanes; mask *= 2) {
        states[i].sum += device::shuffle_xor(states[i].sum, mask);
      }
      const int row = lane % 4 * 2 + i;
      if (lane / 4 == 0) memory.states[row] = states[i];
      float* sums = memory.sums() + row * kHeadSize + lane / 4;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        sums[step * 16] = values[step][i];
        sums[step * 16 + 8] = values[step][i + 2];
      }
    }
  }
};

}  // namespace legokv
