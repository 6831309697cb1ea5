#include "legolink_attention/attention_shape.h"
#include "legolink_attention/kernels.h"
#include "legolink_attention/warp_pairs.cuh"

namespace legokv {
namespace {

// Softmax over scores that come one by one, with the weighted sum of values so far.
struct OnlineSoftmax {
  float max = -INFINITY;
  float sum = 0;
  Pair values[kMaxPairs] = {};

  LEGOKV_DEVICE void add(float score, const Pair (&value)[kMaxPairs]) {
    const float new_max = fmaxf(max, score);
    const float keep = expf(max - new_max), weight = expf(score - new_max);
    for (int i = 0; i < kMaxPairs; ++i) {
      values[i].first = values[i].first * keep + value[i].first * weight;
      values[i].second = values[i].second * keep + value[i].second * weight;
    }
    sum = sum * keep + weight;
    max = new_max;
  }
};

// One warp attends for one query head of one token, key after key. This kernel is the one to
// believe.
template <typename T>
LEGOKV_KERNEL(kLanes)
attend_reference_kernel(LEGOKV_PARAMETER LegokvLegolinkAttention a) {
  const PoolLayout layout = pool_layout(a);
  const int half = a.head_size / 2;
  const int64_t row = device::block_x();
  const int token = static_cast<int>(row / a.num_heads);
  const int kv_head = static_cast<int>(row % a.num_heads) / heads_per_kv_head(a);
  const TableRows table = table_rows(a, sequence_of_token(sequences(a), token));
  Pair query[kMaxPairs], rotated[kMaxPairs], key[kMaxPairs], value[kMaxPairs];
  load_pairs(
      query,
      static_cast<const T*>(a.q) + query_offset(a, token, static_cast<int>(row % a.num_heads)),
      half);

  OnlineSoftmax softmax;
  for (int i = 0; i < table.num_rows; ++i) {
    const PageRow page = table.rows[i];
    rotate_pairs(rotated, query, a.inv_freq, half, a.positions[token] - page.base);
    const int num_slots = filled_slots(page, a.num_pool_pages, a.page_size);
    for (int slot = 0; slot < num_slots; ++slot) {
      if (!sees(a.positions[token], page.first_position + slot)) break;
      const T* stored =
          static_cast<const T*>(a.pool) + key_offset(layout, page.page, slot, kv_head);
      load_pairs(key, stored, half);
      load_pairs(value, stored + value_distance(layout), half);
      softmax.add(a.scale * product_of_warp(rotated, key), value);
    }
  }

  T* out = static_cast<T*>(a.out) + row * a.head_size;
  const float normalizer = softmax.sum > 0 ? 1 / softmax.sum : 0;
  for (int i = 0; i < kMaxPairs; ++i) {
    const int pair = device::thread_index() + i * kLanes;
    if (pair >= half) continue;
    out[pair] = from_float<T>(softmax.values[i].first * normalizer);
    out[pair + half] = from_float<T>(softmax.values[i].second * normalizer);
  }
}

}  // namespace

Status launch_attend_reference(const LegokvLegolinkAttention& a, void* stream) {
  const LaunchShape shape = {int64_t{a.num_tokens} * a.num_heads, 1, 1, kLanes, 0};
  return with_dtype(a.dtype, [&](auto number) {
    return device::launch(attend_reference_kernel<decltype(number)>, shape, stream, a);
  });
}

}  // namespace legokv
