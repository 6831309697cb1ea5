#include "legolink_attention/warp_pairs.cuh"
#include "scored_attention/kernels.h"

namespace legokv {
namespace {

// One warp finds the norm of one query head of one token, key after key. Rows that score nothing
// are left as they are: nobody reads them.
template <typename T>
LEGOKV_KERNEL(kLanes)
norm_rows_kernel(LEGOKV_PARAMETER ScoringCall call) {
  const LegokvLegolinkAttention& a = call.attention;
  const PoolLayout layout = pool_layout(a);
  const int half = a.head_size / 2;
  const int64_t row = device::block_x();
  const int token = static_cast<int>(row / a.num_heads);
  const int kv_head = static_cast<int>(row % a.num_heads) / heads_per_kv_head(a);
  const int sequence = sequence_of_token(sequences(a), token);
  if (sequence >= a.num_sequences || token < scoring_tokens(call, sequence).first) return;
  const TableRows table = table_rows(a, sequence);
  Pair query[kMaxPairs], rotated[kMaxPairs], key[kMaxPairs];
  load_pairs(
      query,
      static_cast<const T*>(a.q) + query_offset(a, token, static_cast<int>(row % a.num_heads)),
      half);

  float max = -INFINITY, sum = 0;
  for (int i = 0; i < table.num_rows; ++i) {
    const PageRow page = table.rows[i];
    rotate_pairs(rotated, query, a.inv_freq, half, a.positions[token] - page.base);
    for (int slot = 0; slot < page.filled; ++slot) {
      if (!sees(a.positions[token], page.first_position + slot)) break;
      load_pairs(key, static_cast<const T*>(a.pool) + key_offset(layout, page.page, slot, kv_head),
                 half);
      const float score = a.scale * product_of_warp(rotated, key);
      const float new_max = fmaxf(max, score);
      sum = sum * expf(max - new_max) + expf(score - new_max);
      max = new_max;
    }
  }
  if (device::thread_index() == 0) call.norms[row] = {max, sum > 0 ? 1 / sum : 0};
}

}  // namespace

Status launch_norm_rows(const ScoringCall& call, void* stream) {
  const LegokvLegolinkAttention& a = call.attention;
  const LaunchShape shape = {int64_t{a.num_tokens} * a.num_heads, 1, 1, kLanes, 0};
  return with_dtype(a.dtype, [&](auto number) {
    return device::launch(norm_rows_kernel<decltype(number)>, shape, stream, call);
  });
}

}  // namespace legokv
