// Which kernels attend and over how many splits of the keys, from shapes alone: nothing here reads
// a device, so a plan built on one machine asks for the same workspace on another.
#pragma once

#include <cstdint>

#include "legokv/host_device.h"
#include "legokv/launchers.h"
#include "legokv/status.h"

namespace legokv {

// A tile of the tensor-core kernel, and the most query rows one block of the split kernel holds.
constexpr int kTileRows = 128;
constexpr int kMaxSplitRows = 8;
constexpr int kMaxSplits = 32;
// Blocks of the tensor-core kernel that keep a large GPU busy, two on each of an H100's 132
// multiprocessors.
constexpr int64_t kTargetTiles = 256;

// One kernel's share of a step. `few_tokens` > 0: sequences of at most so many tokens are the split
// kernel's, all others the tiled kernel's; 0: all are this kernel's.
struct AttentionPlan {
  int regime;
  int num_splits;
  int few_tokens;
  int is_partial;            // whether its results are put together with others
  int64_t workspace_floats;  // where its partial results begin
};

// `shared_floats`: where those of shared tiles begin.
struct AttentionPlans {
  AttentionPlan parts[2];
  int num_parts;
  int64_t shared_floats;
};

// What a kernel gets: the arguments and its share of the plan made from them.
struct AttentionCall {
  LegokvLegolinkAttention arguments;
  AttentionPlan plan;
  int64_t shared_floats;
};

// The most tokens of a sequence whose query rows are few.
int few_tokens(int heads_per_kv_head);

// Whether some of the keys are attended to by tiles of rows of several sequences.
LEGOKV_HOST_DEVICE bool shares(const LegokvLegolinkAttention& a) { return a.num_shared_tiles > 0; }

bool is_supported_head_size(int head_size);
bool is_supported_page_size(int page_size);

// kInvalidArgument with the numbers if no kernel can do it. Pointers are not looked at.
Status check_attention_shape(const LegokvLegolinkAttention& attention);

AttentionPlans plan_attention(const LegokvLegolinkAttention& attention);

// Query rows that a part's partial results have places for: a token's heads one after another, of
// all tokens, or of `few_tokens` a sequence.
LEGOKV_HOST_DEVICE int64_t partial_rows(const LegokvLegolinkAttention& a,
                                        const AttentionPlan& plan) {
  const bool by_place = plan.regime == LEGOKV_SPLIT && plan.few_tokens > 0;
  const int64_t places =
      by_place ? int64_t{a.num_sequences} * plan.few_tokens : int64_t{a.num_tokens};
  return places * a.num_heads;
}

int64_t workspace_bytes(const LegokvLegolinkAttention& attention);

// Enough for every call with at most as many tokens and sequences and the other sizes the same.
int64_t max_workspace_bytes(LegokvLegolinkAttention attention);

}  // namespace legokv
