#include "legokv/device.h"
#include "legokv/dtype.h"
#include "legokv/rotation.h"
#include "legolink_attention/attention_shape.h"
#include "legolink_attention/head_sizes.h"
#include "legolink_attention/kernels.h"
#include "legolink_attention/results.cuh"
#include "legolink_attention/strips.cuh"

namespace legokv {
namespace {

constexpr int kStages = 2;
constexpr int kLanesPerKey = kWarpLanes / kStripKeys;

// float32 strips are twice as large: half as many warps keep a block within every GPU's shared
// memory.
template <typename T>
constexpr int kWarps = sizeof(T) == 4 ? 2 : 4;

// One warp's own shared memory.
template <typename T, int kHeadSize, int kRows>
struct WarpMemory {
  StripBuffer<T, kHeadSize> keys[kStages];
  StripBuffer<T, kHeadSize> values[kStages];
  float query[kRows][kHeadSize];     // rotated; at the end, the warp's weighted sums of values
  float weights[kRows][kStripKeys];  // of the strip's keys
  SoftmaxState states[kRows];
};

// The query rows of a block: heads of one token that share a KV head.
struct QueryRows {
  int token;
  int sequence;
  int position;
  int kv_head;
  int first_head;
  int num_heads;  // 1 ... kRows
};

template <int kRows>
LEGOKV_DEVICE QueryRows query_rows(const LegokvLegolinkAttention& a) {
  const int heads = heads_per_kv_head(a), tiles = (heads + kRows - 1) / kRows;
  const int token = static_cast<int>(device::block_x() / tiles);
  const int first = static_cast<int>(device::block_x() % tiles) * kRows;
  const int left = heads - first;
  return {token,
          sequence_of_token(sequences(a), token),
          a.positions[token],
          device::block_y(),
          device::block_y() * heads + first,
          left < kRows ? left : kRows};
}

LEGOKV_DEVICE int64_t result_row(const LegokvLegolinkAttention& a, const QueryRows& rows, int row) {
  return int64_t{rows.token} * a.num_heads + rows.first_head + row;
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
    for (int pair = lane; pair < kPairs; pair += kWarpLanes) {
      const Rotation rotation = rotation_by(rows.position - base, a.inv_freq[pair]);
      for (int row = 0; row < kRows; ++row) {
        Pair turned = {0, 0};
        if (row < rows.num_heads) {
          const T* q = static_cast<const T*>(a.q) + result_row(a, rows, row) * kHeadSize + pair;
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
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          scores[row] += memory.query[row][first + i] * to_float(part.values[i]);
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
      for (int key = 0; key < kStripKeys; ++key) {
        const Vector<T, 2> value =
            *reinterpret_cast<const Vector<T, 2>*>(&memory.values[stage].numbers[key][pair * 2]);
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          values[row][i][0] += memory.weights[row][key] * to_float(value.values[0]);
          values[row][i][1] += memory.weights[row][key] * to_float(value.values[1]);
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

// Threads of the block put the warps' results together, two dimensions of a row at a time.
template <typename T, int kHeadSize, int kRows>
LEGOKV_DEVICE void merge_warps(const AttentionCall& call, const QueryRows& rows,
                               const WarpMemory<T, kHeadSize, kRows>* warps) {
  constexpr int kPairs = kHeadSize / 2;
  for (int item = device::thread_index(); item < rows.num_heads * kPairs;
       item += kWarps<T> * kWarpLanes) {
    const int row = item / kPairs, dimension = item % kPairs * 2;
    SoftmaxState state = {-INFINITY, 0};
    for (int warp = 0; warp < kWarps<T>; ++warp)
      state.max = fmaxf(state.max, warps[warp].states[row].max);
    float values[2] = {};
    for (int warp = 0; warp < kWarps<T>; ++warp) {
      const SoftmaxState part = warps[warp].states[row];
      if (part.sum == 0) continue;
      const float weight = device::exp2(part.max - state.max);
      state.sum += part.sum * weight;
      values[0] += warps[warp].query[row][dimension] * weight;
      values[1] += warps[warp].query[row][dimension + 1] * weight;
    }
    const int64_t place = result_row(call.arguments, rows, row);
    store_values<T>(call, place, dimension, values, state.sum);
    if (dimension == 0) store_state(call, place, state);
  }
}

// One block attends for up to kRows query heads of one token that share a KV head, over one split
// of the keys; its warps take consecutive parts of that split and need each other only at the end.
template <typename T, int kHeadSize, int kRows>
LEGOKV_KERNEL(kWarps<T>* kWarpLanes)
attend_split_kernel(LEGOKV_PARAMETER AttentionCall call) {
  const LegokvLegolinkAttention& a = call.arguments;
  auto* warps = reinterpret_cast<WarpMemory<T, kHeadSize, kRows>*>(device::shared_memory());
  const int warp = device::thread_index() / kWarpLanes;
  const QueryRows rows = query_rows<kRows>(a);
  WarpAttention<T, kHeadSize, kRows> attention(a, rows, warps[warp]);
  attention.attend(walk_strips(a, rows.sequence, rows.position,
                               device::block_z() * kWarps<T> + warp,
                               call.plan.num_splits * kWarps<T>));
  attention.finish();
  device::sync_block();
  merge_warps(call, rows, warps);
}

template <typename T, int kHeadSize, int kRows>
Status launch_rows(const AttentionCall& call, void* stream) {
  const LegokvLegolinkAttention& a = call.arguments;
  const int tiles = (heads_per_kv_head(a) + kRows - 1) / kRows;
  static_assert(kWarps<T> * sizeof(WarpMemory<T, kHeadSize, kRows>) <= kMaxSharedBytes);
  const int shared_bytes = kWarps<T> * static_cast<int>(sizeof(WarpMemory<T, kHeadSize, kRows>));
  const LaunchShape shape = {int64_t{a.num_tokens} * tiles, a.num_kv_heads, call.plan.num_splits,
                             kWarps<T> * kWarpLanes, shared_bytes};
  return device::launch(attend_split_kernel<T, kHeadSize, kRows>, shape, stream, call);
}

template <typename T, int kHeadSize>
Status launch_head_size(const AttentionCall& call, void* stream) {
  const int heads = heads_per_kv_head(call.arguments);
  if (heads == 1) return launch_rows<T, kHeadSize, 1>(call, stream);
  if (heads <= 4) return launch_rows<T, kHeadSize, 4>(call, stream);
  return launch_rows<T, kHeadSize, kMaxSplitRows>(call, stream);
}

}  // namespace

Status launch_attend_split(const AttentionCall& call, void* stream) {
  return with_dtype(call.arguments.dtype, [&](auto number) {
    return with_head_size(call.arguments.head_size, [&](auto head_size) {
      return launch_head_size<decltype(number), decltype(head_size)::value>(call, stream);
    });
  });
}

}  // namespace legokv
