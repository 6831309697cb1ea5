// One warp's part of the split kernel: its strips, all query rows of the block, no other warp.
#pragma once

#include "legokv/device.h"
#include "legokv/rotation.h"
#include "legolink_attention/attention_shape.h"
#include "legolink_attention/results.cuh"
#include "legolink_attention/strips.cuh"

namespace legokv {

constexpr int kSplitStages = 2;
constexpr int kLanesPerKey = kWarpLanes / kStripKeys;

// float32 strips are twice as large: half as many warps keep a block within every GPU's shared
// memory.
template <typename T>
constexpr int kSplitWarps = sizeof(T) == 4 ? 2 : 4;

// One warp's own shared memory.
template <typename T, int kHeadSize, int kRows>
struct WarpMemory {
  StripBuffer<T, kHeadSize> keys[kSplitStages];
  StripBuffer<T, kHeadSize> values[kSplitStages];
  // The rotated query; at the end, the warp's weighted sums of values.
  alignas(16) float query[kRows][kHeadSize];
  alignas(16) float weights[kRows][kStripKeys];  // of the strip's keys
  SoftmaxState states[kRows];
};

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

  // Walks the strips, the next one on its way while one is used.
  LEGOKV_DEVICE void attend(StripWalk walk) {
    KeyStrip strip, next;
    bool rotated = false;
    int rotated_base = 0, stage = 0;
    bool more = walk.take(&strip);
    start_strip_copies(a, strip, rows.kv_head, lane, kWarpLanes, &memory.keys[0],
                       &memory.values[0]);
    device::commit_copies();
    while (more) {
      more = walk.take(&next);
      start_strip_copies(a, next, rows.kv_head, lane, kWarpLanes, &memory.keys[stage ^ 1],
                         &memory.values[stage ^ 1]);
      device::commit_copies();
      if (!rotated || strip.base != rotated_base) rotate_query(strip.base);
      rotated = true;
      rotated_base = strip.base;
      device::wait_copies<1>();
      device::sync_warp();
      float scores[kRows];
      score(strip, stage, scores);
      weigh(scores);
      device::sync_warp();
      add_values(stage);
      device::sync_warp();
      strip = next;
      stage ^= 1;
    }
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
