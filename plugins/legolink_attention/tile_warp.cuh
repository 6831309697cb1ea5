// One warp's part of the tensor-core kernel: its query rows of the tile, all keys of the stage.
#pragma once

#include "legokv/device.h"
#include "legolink_attention/attention_shape.h"
#include "legolink_attention/results.cuh"
#include "legolink_attention/strip_list.cuh"
#include "legolink_attention/tile_query.cuh"

namespace legokv {

constexpr int kTileStages = 2;

template <typename T, int kHeadSize>
struct TileMemory {
  StripBuffer<T, kHeadSize> keys[kTileStages][kStageStrips<kHeadSize>];
  StripBuffer<T, kHeadSize> values[kTileStages][kStageStrips<kHeadSize>];
  TileQuery<T, kHeadSize> query;
  StripList list;
  TileRow rows[kTileRows];
  float inv_freq[kHeadSize / 2];
};

// Strips of the list from `first` on, all of one base.
struct TileStage {
  int first;
  int num_strips;  // 0: there are no more
  int base;
};

// One warp's part of a tile: of each group 16 query rows, as the accumulators of mma.m16n8k16 hold
// them. A lane has rows lane/4 and lane/4 + 8, and of every 8 columns the two from 2 * (lane % 4)
// on.
template <typename T, int kHeadSize>
struct WarpTile {
  static constexpr int kSteps = kHeadSize / 16;  // of 16 dimensions
  static constexpr int kGroups = kTileGroups;
  static constexpr int kStrips = kStageStrips<kHeadSize>;
  using Scores = float[kGroups][2 * kStrips][4];

  const LegokvLegolinkAttention& a;
  TileMemory<T, kHeadSize>& memory;
  int lane;
  int first_row;
  int turned_base = 0;
  SoftmaxState states[kGroups][2];  // sums are of this lane's columns only until finish()
  float values[kGroups][2 * kSteps][4] = {};

  LEGOKV_DEVICE WarpTile(const LegokvLegolinkAttention& arguments, TileMemory<T, kHeadSize>& shared)
      : a(arguments),
        memory(shared),
        lane(device::thread_index() % kWarpLanes),
        first_row(device::thread_index() / kWarpLanes * kProductRows) {
    for (auto& group : states) group[0] = group[1] = {-INFINITY, 0};
  }

  // The tile's row that is the lane's row `i` (0 or 1) of a group.
  LEGOKV_DEVICE int lane_row(int group, int i) const {
    return group * kGroupRows + first_row + lane / 4 + i * 8;
  }

  // Only its own rows; other lanes read what one has turned. Those of the last stage have read what
  // was there: a barrier of the block is between. Row by row: unrolled it is four times as long,
  // for what is done once a chunk.
  LEGOKV_DEVICE void turn_query(const TileStage& stage) {
    if (stage.first > 0 && stage.base == turned_base) return;
    turned_base = stage.base;
#pragma unroll 1
    for (int i = 0; i < 2 * kGroups; ++i) {
      const int row = lane_row(i / 2, i % 2);
      turn_row<T, kHeadSize>(a, memory.rows[row], stage.base, memory.inv_freq,
                             memory.query.numbers[row]);
    }
    device::sync_warp();
  }

  // Products with the stage's keys, 8 in each accumulator; what a strip that isn't there holds is
  // masked later.
  LEGOKV_DEVICE void multiply_keys(int buffer, Scores& scores) const {
    const int key = lane / 16 * 8 + lane % 8, dimension = lane / 8 % 2 * 8;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t rows[kGroups][4];
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        const int row = group * kGroupRows + first_row + lane % 16;
        device::load_matrices(rows[group], &memory.query.numbers[row][step * 16 + lane / 16 * 8]);
      }
#pragma unroll
      for (int i = 0; i < kStrips; ++i) {
        uint32_t matrices[4];
        device::load_matrices(matrices,
                              &memory.keys[buffer][i].numbers[key][step * 16 + dimension]);
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          device::multiply_accumulate<T>(scores[group][2 * i], rows[group],
                                         {matrices[0], matrices[1]});
          device::multiply_accumulate<T>(scores[group][2 * i + 1], rows[group],
                                         {matrices[2], matrices[3]});
        }
      }
    }
  }

  // Of the stage's strip `i`; one that isn't there has no keys.
  LEGOKV_DEVICE KeyStrip strip_of(const TileStage& stage, int i) const {
    const ListedStrip& listed = memory.list.at(stage.first + i);
    KeyStrip strip = {};
    strip.first_position = listed.first_position;
    strip.num_keys = i < stage.num_strips ? listed.num_keys : 0;
    return strip;
  }

  // -infinity where a row doesn't see a key. Where the warp's first row sees all 16, all rows do.
  LEGOKV_DEVICE void mask(const TileStage& stage, int first_position, Scores& scores) const {
#pragma unroll
    for (int i = 0; i < kStrips; ++i) {
      const KeyStrip strip = strip_of(stage, i);
      if (num_seen_keys(strip, first_position) == kStripKeys) continue;
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int seen =
              num_seen_keys(strip, memory.rows[lane_row(group, k)].position) - lane % 4 * 2;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float& score = scores[group][2 * i + j / 2][2 * k + j % 2];
            if (j / 2 * 8 + j % 2 >= seen) score = -INFINITY;
          }
        }
      }
    }
  }

  // The largest score of a row so far; the four lanes that share the row agree on it.
  LEGOKV_DEVICE float new_max(const float (&scores)[2 * kStrips][4], float max, int i) const {
#pragma unroll
    for (int j = 0; j < 2 * kStrips; ++j) {
      max = fmaxf(max, fmaxf(scores[j][2 * i], scores[j][2 * i + 1]));
    }
    max = fmaxf(max, device::shuffle_xor(max, 1));
    return fmaxf(max, device::shuffle_xor(max, 2));
  }

  // Turns scores into weights and brings sums and values to the new maxima, unless these are the
  // old ones. A row that has seen nothing yet is shifted by 0, for -infinity minus itself is no
  // number.
  LEGOKV_DEVICE void weigh(float (&scores)[2 * kStrips][4], int group) {
    float keep[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      SoftmaxState& state = states[group][i];
      const float max = new_max(scores, state.max, i), shift = max == -INFINITY ? 0 : max;
      keep[i] = device::exp2(state.max - shift);
      state = {max, state.sum * keep[i]};
#pragma unroll
      for (int j = 0; j < 2 * kStrips; ++j) {
#pragma unroll
        for (int k = 2 * i; k < 2 * i + 2; ++k) {
          scores[j][k] = device::exp2(scores[j][k] - shift);
          state.sum += scores[j][k];
        }
      }
    }
    if (device::ballot(keep[0] != 1 || keep[1] != 1) == 0) return;
#pragma unroll
    for (int j = 0; j < 2 * kSteps; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) values[group][j][k] *= keep[k / 2];
    }
  }

  // The accumulators of 16 keys' weights are, two by two, the left operand over those keys.
  LEGOKV_DEVICE void add_values(const StripBuffer<T, kHeadSize>& strip, const Scores& scores,
                                int i) {
    uint32_t weights[kGroups][4];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* pair = &scores[group][2 * i + j / 2][j % 2 * 2];
        weights[group][j] = pack_pair<T>(pair[0], pair[1]);
      }
    }
    const int key = lane % 16, dimension = lane / 16 * 8;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t matrices[4];
      device::load_matrices_transposed(matrices, &strip.numbers[key][step * 16 + dimension]);
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        device::multiply_accumulate<T>(values[group][2 * step], weights[group],
                                       {matrices[0], matrices[1]});
        device::multiply_accumulate<T>(values[group][2 * step + 1], weights[group],
                                       {matrices[2], matrices[3]});
      }
    }
  }

  // A warp without rows has nothing to do.
  LEGOKV_DEVICE void take(const TileStage& stage, int buffer) {
    const TileRow& first = memory.rows[first_row];
    if (first.query < 0) return;
    turn_query(stage);
    Scores scores = {};
    multiply_keys(buffer, scores);
    mask(stage, first.position, scores);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) weigh(scores[group], group);
#pragma unroll
    for (int i = 0; i < kStrips; ++i) {
      if (i < stage.num_strips) add_values(memory.values[buffer][i], scores, i);
    }
  }

  // `results` takes a row's state by one of its lanes, and its values two by two.
  template <typename Results>
  LEGOKV_DEVICE void finish(const Results& results) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        SoftmaxState state = states[group][i];
        state.sum += device::shuffle_xor(state.sum, 1);
        state.sum += device::shuffle_xor(state.sum, 2);
        const TileRow& of = memory.rows[lane_row(group, i)];
        if (of.query < 0) continue;
        if (lane % 4 == 0) results.store_state(of.result, state);
#pragma unroll
        for (int j = 0; j < 2 * kSteps; ++j) {
          const float pair[2] = {values[group][j][2 * i], values[group][j][2 * i + 1]};
          results.store_values(of.result, j * 8 + lane % 4 * 2, pair, state.sum);
        }
      }
    }
  }
};

}  // namespace legokv
