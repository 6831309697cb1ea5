// Which kernel attends and over how many splits of the keys, from shapes alone: nothing here reads
// a device, so a plan built on one machine asks for the same workspace on another.
#pragma once

#include <cstdint>

#include "legokv/launchers.h"
#include "legokv/status.h"

namespace legokv {

// A tile of the tensor-core kernel, and the most query rows one block of the split kernel holds.
constexpr int kTileRows = 64;
constexpr int kMaxSplitRows = 8;
constexpr int kMaxSplits = 32;

struct AttentionPlan {
  int regime;
  int num_splits;
};

// What the kernels get: the arguments and the plan made from them.
struct AttentionCall {
  LegokvLegolinkAttention arguments;
  AttentionPlan plan;
};

bool is_supported_head_size(int head_size);
bool is_supported_page_size(int page_size);

// kInvalidArgument with the numbers if no kernel can do it. Pointers are not looked at.
Status check_attention_shape(const LegokvLegolinkAttention& attention);

AttentionPlan plan_attention(const LegokvLegolinkAttention& attention);

int64_t workspace_bytes(const LegokvLegolinkAttention& attention);

// Enough for every call with at most as many tokens and the other sizes the same.
int64_t max_workspace_bytes(LegokvLegolinkAttention attention);

}  // namespace legokv
