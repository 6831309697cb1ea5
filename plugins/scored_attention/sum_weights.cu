#include "legolink_attention/warp_pairs.cuh"
#include "scored_attention/kernels.h"

namespace legokv {
namespace {

// What one query head of one token weighs the page's slots from `first_slot` on, added to the mass
// of the lane that has the slot.
template <typename T>
LEGOKV_DEVICE void add_row(const ScoringCall& call, const PageRow& page, int first_slot, int token,
                           int head, float* mass) {
  const LegokvLegolinkAttention& a = call.attention;
  const PoolLayout layout = pool_layout(a);
  const int half = a.head_size / 2, kv_head = head / heads_per_kv_head(a);
  const int64_t row = int64_t{token} * a.num_heads + head;
  const RowNorm norm = call.norms[row];
  Pair query[kMaxPairs], rotated[kMaxPairs], key[kMaxPairs];
  load_pairs(query, static_cast<const T*>(a.q) + query_offset(a, token, head), half);
  rotate_pairs(rotated, query, a.inv_freq, half, a.positions[token] - page.base);
  for (int lane = 0; lane < kLanes && first_slot + lane < page.filled; ++lane) {
    const int slot = first_slot + lane;
    if (!sees(a.positions[token], page.first_position + slot)) break;
    load_pairs(key, static_cast<const T*>(a.pool) + key_offset(layout, page.page, slot, kv_head),
               half);
    const float weight = expf(a.scale * product_of_warp(rotated, key) - norm.max) * norm.share;
    if (device::thread_index() == lane) *mass += weight;
  }
}

// One warp sums the weights of a warp's worth of slots of one page, token after token and head
// after head: in one order, whatever else the step has.
template <typename T>
LEGOKV_KERNEL(kLanes)
sum_weights_kernel(LEGOKV_PARAMETER ScoringCall call) {
  const LegokvLegolinkAttention& a = call.attention;
  const int64_t place = device::block_x();
  const int sequence = static_cast<int>(place / a.num_table_rows);
  const int first_slot = device::block_y() * kLanes;
  const PageRow page = reinterpret_cast<const PageRow*>(a.pages)[place];
  const ScoringTokens tokens = scoring_tokens(call, sequence);
  float mass = 0;
  for (int token = tokens.first; token < tokens.end; ++token) {
    for (int head = 0; head < a.num_heads; ++head) {
      add_row<T>(call, page, first_slot, token, head, &mass);
    }
  }
  const int slot = first_slot + device::thread_index();
  if (slot < a.page_size) call.mass[place * a.page_size + slot] = mass;
}

}  // namespace

Status launch_sum_weights(const ScoringCall& call, void* stream) {
  const LegokvLegolinkAttention& a = call.attention;
  const LaunchShape shape = {int64_t{a.num_sequences} * a.num_table_rows,
                             (a.page_size + kLanes - 1) / kLanes, 1, kLanes, 0};
  return with_dtype(a.dtype, [&](auto number) {
    return device::launch(sum_weights_kernel<decltype(number)>, shape, stream, call);
  });
}

}  // namespace legokv
