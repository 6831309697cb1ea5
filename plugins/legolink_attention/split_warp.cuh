// One warp's part of the split kernel in float32: its strips, all query rows of the block, no other
// warp.
#pragma once

#include "legokv/device.h"
#include "legokv/rotation.h"
#include "legolink_attention/results.cuh"
#include "legolink_attention/split_rows.cuh"

namespace legokv {

constexpr int kLanesPerKey = kWarpLanes / kStripKeys;

// One warp's own shared memory.
template <typename T, int kHeadSize, int kRows>
struct WarpMemory {
  StripBuffer<T, kHeadSize> keys[kSplitStages];
  StripBuffer<T, kHeadSize> values[kSplitStages];
  // The rotated query; at the end, the warp's weighted sums of values.
  alignas(16) float query[kRows][kHeadSize];
  alignas(16) float weights[kRows][kStripKeys];  // of the strip's keys
  SoftmaxState states[kRows];

  LEGOKV_DEVICE float* sums() { return query[0]; }
  LEGOKV_DEVICE const float* sums() const { return query[0]; }
};

LEGOKV_DEVICE Vector<float> four_of(const float* numbers) {
  return *reinterpret_cast<const Vector<float>*>(numbers);
}

// One warp attends over its strips with all query rows of the block at once: a key or value is read
// from shared memory by every row's thread, from the pool once.
template <typename T, int kHeadSize, int kRows>
struct WarpAttention {
  static constexpr int kPairs = kHeadSize / 2;
  static constexpr int kPairsPerLane = (kPairs + kWarpLanes - 1) / kWarpLanes;

  const LegokvLegolinkAttention& a;
  const QueryRows& rows;
  WarpMemory<T, kHeadSize, kRows>& memory;
  int lane;
  SoftmaxState states[kRows];  // sums are of this lane's keys only until finish()
  float values[kRows][kPairsPerLane][2] = {};

  LEGOKV_DEVICE WarpAttention(const LegokvLegolinkAttention& arguments, const QueryRows& of,
                              WarpMemory<T, kHeadSize, kRows>& own)
      : a(arguments), rows(of), memory(own), lane(device::thread_index() % kWarpLanes) {
    for (SoftmaxState& state : states) state = {-INFINITY, 0};
  }

  // All rows are of one token, so one angle serves them all.
  LEGOKV_DEVICE void rotate_query(int base) {
    const T* first = static_cast<const T*>(a.q) + query_offset(a, rows.token, rows.first_head);
    for (int pair = lane; pair < kPairs; pair += kWarpLanes) {
      const Rotation rotation = rotation_by(rows.position - base, a.inv_freq[pair]);
      for (int row = 0; row < kRows; ++row) {
        Pair turned = {0, 0};
        if (row < rows.num_heads) {
          const T* q = first + (row * kHeadSize + pair);
          turned = rotate(rotation, {to_float(q[0]), to_float(q[kPairs])});
        }
        memory.query[row][pair] = turned.first;
        memory.query[row][pair + kPairs] = turned.second;
      }
    }
  }

  // Scores of the lane's key, in base 2; two lanes share a key and both get the whole score.
  LEGOKV_DEVICE void score(const KeyStrip& strip, int stage, float (&scores)[kRows]) const {
    constexpr int kSize = Vector<T>::kSize;
    const int key = lane / kLanesPerKey;
    for (float& one : scores) one = 0;
    for (int first = lane % kLanesPerKey * kSize; first < kHeadSize;
         first += kLanesPerKey * kSize) {
      const Vector<T> part =
          *reinterpret_cast<const Vector<T>*>(&memory.keys[stage].numbers[key][first]);
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        Vector<float> q;
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          if (i % 4 == 0) q = four_of(&memory.query[row][first + i]);
          scores[row] += q.values[i % 4] * to_float(part.values[i]);
        }
      }
    }
    const bool seen = key < strip.num_keys;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      scores[row] += device::shuffle_xor(scores[row], 1);
      scores[row] = seen ? scores[row] * (a.scale * kLog2e) : -INFINITY;
    }
  }

  // Takes the strip into the running softmax; a walked strip has a key that is seen, so the new
  // maximum is finite.
  LEGOKV_DEVICE void weigh(const float (&scores)[kRows]) {
    const int key = lane / kLanesPerKey;
    const bool counts = lane % kLanesPerKey == 0;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      float max = fmaxf(states[row].max, scores[row]);
      for (int mask = kLanesPerKey; mask < kWarpLanes; mask *= 2) {
        max = fmaxf(max, device::shuffle_xor(max, mask));
      }
      const float keep = device::exp2(states[row].max - max);
      const float weight = device::exp2(scores[row] - max);
      states[row] = {max, states[row].sum * keep + (counts ? weight : 0)};
      if (counts) memory.weights[row][key] = weight;
#pragma unroll
      for (int i = 0; i < kPairsPerLane; ++i) {
        values[row][i][0] *= keep;
        values[row][i][1] *= keep;
      }
    }
  }

  LEGOKV_DEVICE void add_values(int stage) {
#pragma unroll
    for (int i = 0; i < kPairsPerLane; ++i) {
      const int pair = lane + i * kWarpLanes;
      if (pair >= kPairs) continue;
      for (int first = 0; first < kStripKeys; first += 4) {
        Vector<T, 2> value[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          value[j] = *reinterpret_cast<const Vector<T, 2>*>(
              &memory.values[stage].numbers[first + j][pair * 2]);
        }
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          const Vector<float> weights = four_of(&memory.weights[row][first]);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            values[row][i][0] += weights.values[j] * to_float(value[j].values[0]);
            values[row][i][1] += weights.values[j] * to_float(value[j].values[1]);
          }
        }
      }
    }
  }

  LEGOKV_DEVICE void take(const KeyStrip& strip, int stage) {
    float scores[kRows];
    score(strip, stage, scores);
    weigh(scores);
    device::sync_warp();
    add_values(stage);
  }

  // Leaves the warp's result in its shared memory, for all warps of the block.
  LEGOKV_DEVICE void finish() {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) {
        states[row].sum += device::shuffle_xor(states[row].sum, mask);
      }
      if (lane == 0) memory.states[row] = states[row];
#pragma unroll
      for (int i = 0; i < kPairsPerLane; ++i) {
        const int pair = lane + i * kWarpLanes;
        if (pair >= kPairs) continue;
        memory.query[row][pair * 2] = values[row][i][0];
        memory.query[row][pair * 2 + 1] = values[row][i][1];
      }
    }
  }
};

}  // namespace legokv
