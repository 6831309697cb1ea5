// The kernels of scored_attention beside those of legolink_attention, which run before them.
#pragma once

#include "legokv/launchers.h"
#include "legokv/page_table.h"
#include "legokv/query_rows.h"
#include "legokv/status.h"
#include "legolink_attention/attention_shape.h"

namespace legokv {

// How a row's weights are normed: the largest score, and 1 over the sum of its weights relative to
// it; 0 for a row that sees no key.
struct RowNorm {
  float max;
  float share;
};

struct ScoringCall {
  LegokvLegolinkAttention attention;
  const int32_t* scoring;  // [B]
  float* mass;             // [B, P, S]
  RowNorm* norms;          // [T, H]
};

// Tokens `first` to `end` of a sequence score keys.
struct ScoringTokens {
  int first;
  int end;
};

LEGOKV_HOST_DEVICE ScoringTokens scoring_tokens(const ScoringCall& call, int sequence) {
  const int begin = call.attention.query_start[sequence];
  const int end = call.attention.query_start[sequence + 1];
  const int first = end - call.scoring[sequence];
  return {first < begin ? begin : first, end};
}

Status launch_norm_rows(const ScoringCall& call, void* stream);
Status launch_sum_weights(const ScoringCall& call, void* stream);

}  // namespace legokv
