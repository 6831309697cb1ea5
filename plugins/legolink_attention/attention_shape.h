// Parts of the attention's arguments under the names that the kernels use.
#pragma once

#include "legokv/host_device.h"
#include "legokv/launchers.h"
#include "legokv/page_table.h"
#include "legokv/pool_layout.h"
#include "legokv/query_rows.h"

namespace legokv {

LEGOKV_HOST_DEVICE PoolLayout pool_layout(const LegokvLegolinkAttention& a) {
  return {a.page_size, a.num_kv_heads, a.head_size};
}

LEGOKV_HOST_DEVICE Sequences sequences(const LegokvLegolinkAttention& a) {
  return {a.query_start, a.num_sequences, a.num_tokens};
}

// Where a token's query of one head begins in q.
LEGOKV_HOST_DEVICE int64_t query_offset(const LegokvLegolinkAttention& a, int64_t token, int head) {
  return token * a.q_stride + int64_t{head} * a.head_size;
}

// Query heads that share a KV head.
LEGOKV_HOST_DEVICE int heads_per_kv_head(const LegokvLegolinkAttention& a) {
  return a.num_heads / a.num_kv_heads;
}

// The rows of a sequence's page table; the tokens after the last sequence have none.
struct TableRows {
  const PageRow* rows;
  int num_rows;
};

LEGOKV_HOST_DEVICE TableRows table_rows(const LegokvLegolinkAttention& a, int sequence) {
  const PageRow* all = reinterpret_cast<const PageRow*>(a.pages);
  if (sequence >= a.num_sequences) return {all, 0};
  return {all + int64_t{sequence} * a.num_table_rows, a.num_table_rows};
}

}  // namespace legokv
