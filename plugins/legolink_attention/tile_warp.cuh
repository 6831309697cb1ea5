// One warp's part of the tensor-core kernel: 16 query rows of the tile, all keys of the stage.
#pragma once

#include "legokv/device.h"
#include "legolink_attention/attention_shape.h"
#include "legolink_attention/results.cuh"
#include "legolink_attention/strips.cuh"
#include "legolink_attention/tile_query.cuh"

namespace legokv {

constexpr int kTileStages = 2;
constexpr int kStageStrips = 4;

template <typename T, int kHeadSize>
struct TileMemory {
  StripBuffer<T, kHeadSize> keys[kTileStages][kStageStrips];
  StripBuffer<T, kHeadSize> values[kTileStages][kStageStrips];
  TileQuery<T, kHeadSize> query;
};

// The strips of one stage; those after the last of the walk have no keys.
struct StageStrips {
  KeyStrip strips[kStageStrips];
};

// One warp's part of a tile: 16 query rows, as the accumulators of mma.m16n8k16 hold them. A lane
// has rows lane/4 and lane/4 + 8, and of every 8 columns the two from 2 * (lane % 4) on.
template <typename T, int kHeadSize>
struct WarpTile {
  static constexpr int kSteps = kHeadSize / 16;  // of 16 dimensions

  const LegokvLegolinkAttention& a;
  const TileRows& rows;
  TileMemory<T, kHeadSize>& memory;
  int lane;
  int first_row;
  int first_position;  // of the warp's rows; all see what it sees
  int positions[2];
  uint32_t query[kSteps][4];
  bool rotated = false;
  int rotated_base = 0;
  SoftmaxState states[2];  // sums are of this lane's columns only until finish()
  float values[2 * kSteps][4] = {};

  LEGOKV_DEVICE WarpTile(const LegokvLegolinkAttention& arguments, const TileRows& of,
                         TileMemory<T, kHeadSize>& shared)
      : a(arguments), rows(of), memory(shared), lane(device::thread_index() % kWarpLanes) {
    first_row = device::thread_index() / kWarpLanes * kWarpRows;
    first_position = rows.has(first_row) ? a.positions[rows.token(first_row)] : INT32_MIN;
    for (int i = 0; i < 2; ++i) {
      const int row = lane_row(i);
      positions[i] = rows.has(row) ? a.positions[rows.token(row)] : INT32_MIN;
      states[i] = {-INFINITY, 0};
    }
  }

  LEGOKV_DEVICE int lane_row(int i) const { return first_row + lane / 4 + i * 8; }

  LEGOKV_DEVICE void turn_query_to(int base) {
    if (rotated && base == rotated_base) return;
    rotated = true;
    rotated_base = base;
    device::sync_warp();
    rotate_rows<T, kHeadSize>(a, rows, first_row, base, &memory.query);
    device::sync_warp();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      device::load_matrices(
          query[step], &memory.query.numbers[first_row + lane % 16][step * 16 + lane / 16 * 8]);
    }
  }

  // Dot products with a strip's keys: 8 keys in each of the two accumulators.
  LEGOKV_DEVICE void multiply_keys(const StripBuffer<T, kHeadSize>& keys, float (&low)[4],
                                   float (&high)[4]) const {
    const int key = lane / 16 * 8 + lane % 8, dimension = lane / 8 % 2 * 8;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t matrices[4];
      device::load_matrices(matrices, &keys.numbers[key][step * 16 + dimension]);
      device::multiply_accumulate<T>(low, query[step], {matrices[0], matrices[1]});
      device::multiply_accumulate<T>(high, query[step], {matrices[2], matrices[3]});
    }
  }

  // Whether each of the warp's rows sees each of the strip's 16 keys: then there is nothing to
  // mask.
  LEGOKV_DEVICE bool all_seen(const KeyStrip& strip) const {
    return strip.num_keys == kStripKeys &&
           sees(first_position, strip.first_position + kStripKeys - 1);
  }

  LEGOKV_DEVICE void scale(float (&low)[4], float (&high)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      low[i] *= a.scale * kLog2e;
      high[i] *= a.scale * kLog2e;
    }
  }

  // Scores in base 2 of the keys from `first_key` on; -infinity where a row doesn't see the key.
  LEGOKV_DEVICE void scale_and_mask(const KeyStrip& strip, int first_key,
                                    float (&scores)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = first_key + lane % 4 * 2 + i % 2;
      const bool seen = key < strip.num_keys && sees(positions[i / 2], strip.first_position + key);
      scores[i] = seen ? scores[i] * (a.scale * kLog2e) : -INFINITY;
    }
  }

  LEGOKV_DEVICE void score(const StageStrips& stage, int buffer,
                           float (&scores)[2 * kStageStrips][4]) {
#pragma unroll
    for (int i = 0; i < kStageStrips; ++i) {
      const KeyStrip& strip = stage.strips[i];
#pragma unroll
      for (int j = 0; j < 4; ++j) scores[2 * i][j] = scores[2 * i + 1][j] = 0;
      if (strip.num_keys > 0) {
        turn_query_to(strip.base);
        multiply_keys(memory.keys[buffer][i], scores[2 * i], scores[2 * i + 1]);
      }
      if (all_seen(strip)) {
        scale(scores[2 * i], scores[2 * i + 1]);
      } else {
        scale_and_mask(strip, 0, scores[2 * i]);
        scale_and_mask(strip, 8, scores[2 * i + 1]);
      }
    }
  }

  // The largest score of a row so far; the four lanes that share the row agree on it.
  LEGOKV_DEVICE float new_max(const float (&scores)[2 * kStageStrips][4], int i) const {
    float max = states[i].max;
#pragma unroll
    for (int j = 0; j < 2 * kStageStrips; ++j) {
      max = fmaxf(max, fmaxf(scores[j][2 * i], scores[j][2 * i + 1]));
    }
    max = fmaxf(max, device::shuffle_xor(max, 1));
    return fmaxf(max, device::shuffle_xor(max, 2));
  }

  // Turns scores into weights and brings sums and values to the new maximum. A row that has seen
  // nothing yet is shifted by 0, for -infinity minus itself is no number.
  LEGOKV_DEVICE void weigh(float (&scores)[2 * kStageStrips][4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float max = new_max(scores, i), shift = max == -INFINITY ? 0 : max;
      const float keep = device::exp2(states[i].max - shift);
      float sum = states[i].sum * keep;
#pragma unroll
      for (int j = 0; j < 2 * kStageStrips; ++j) {
#pragma unroll
        for (int k = 2 * i; k < 2 * i + 2; ++k) {
          scores[j][k] = device::exp2(scores[j][k] - shift);
          sum += scores[j][k];
        }
      }
      states[i] = {max, sum};
#pragma unroll
      for (int j = 0; j < 2 * kSteps; ++j) {
        values[j][2 * i] *= keep;
        values[j][2 * i + 1] *= keep;
      }
    }
  }

  // The accumulators of 16 keys' weights are, two by two, the left operand over those keys.
  LEGOKV_DEVICE void add_values(const StripBuffer<T, kHeadSize>& strip, const float (&low)[4],
                                const float (&high)[4]) {
    const uint32_t weights[4] = {pack_pair<T>(low[0], low[1]), pack_pair<T>(low[2], low[3]),
                                 pack_pair<T>(high[0], high[1]), pack_pair<T>(high[2], high[3])};
    const int key = lane % 16, dimension = lane / 16 * 8;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t matrices[4];
      device::load_matrices_transposed(matrices, &strip.numbers[key][step * 16 + dimension]);
      device::multiply_accumulate<T>(values[2 * step], weights, {matrices[0], matrices[1]});
      device::multiply_accumulate<T>(values[2 * step + 1], weights, {matrices[2], matrices[3]});
    }
  }

  LEGOKV_DEVICE void take(const StageStrips& stage, int buffer) {
    float scores[2 * kStageStrips][4];
    score(stage, buffer, scores);
    weigh(scores);
#pragma unroll
    for (int i = 0; i < kStageStrips; ++i) {
      if (stage.strips[i].num_keys == 0) continue;
      add_values(memory.values[buffer][i], scores[2 * i], scores[2 * i + 1]);
    }
  }

  LEGOKV_DEVICE void finish(const AttentionCall& call) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      states[i].sum += device::shuffle_xor(states[i].sum, 1);
      states[i].sum += device::shuffle_xor(states[i].sum, 2);
      if (!rows.has(lane_row(i))) continue;
      const int64_t place = rows.result_row(lane_row(i), a.num_heads);
      const ResultRow row = {place, place};
      if (lane % 4 == 0) store_state(call, row, states[i]);
#pragma unroll
      for (int j = 0; j < 2 * kSteps; ++j) {
        const float pair[2] = {values[j][2 * i], values[j][2 * i + 1]};
        store_values<T>(call, row, j * 8 + lane % 4 * 2, pair, states[i].sum);
      }
    }
  }
};

}  // namespace legokv
