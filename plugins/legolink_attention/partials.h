// Where the splits of the keys, and shared tiles, leave their partial results.
#pragma once

#include <cstdint>

#include "legokv/host_device.h"
#include "legolink_attention/plan.h"

namespace legokv {

// Rows are those of `partial_rows`. Maxima are of scores in base 2.
struct Partials {
  float* values;  // [splits, rows, D], sums of values weighted by 2^(score - max)
  float* maxima;  // [splits, rows]
  float* sums;    // [splits, rows], of the weights
  int64_t num_rows;
};

LEGOKV_HOST_DEVICE Partials partials(const AttentionCall& call) {
  const LegokvLegolinkAttention& a = call.arguments;
  const int64_t rows = partial_rows(a, call.plan);
  float* values = static_cast<float*>(a.workspace) + call.plan.workspace_floats;
  float* maxima = values + call.plan.num_splits * rows * a.head_size;
  return {values, maxima, maxima + call.plan.num_splits * rows, rows};
}

// Those of shared tiles, as of one split: rows are the heads of each member's place.
LEGOKV_HOST_DEVICE Partials shared_partials(const AttentionCall& call) {
  const LegokvLegolinkAttention& a = call.arguments;
  const int64_t rows = int64_t{a.num_shared_members} * a.num_heads;
  float* values = static_cast<float*>(a.workspace) + call.shared_floats;
  float* maxima = values + rows * a.head_size;
  return {values, maxima, maxima + rows, rows};
}

}  // namespace legokv
