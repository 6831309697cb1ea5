// The kernels of legolink_attention, one launch function each; launch.cpp puts them in order.
#pragma once

#include "legokv/status.h"
#include "legolink_attention/plan.h"

namespace legokv {

// Rotates k by key_positions and writes k and v to their slots.
Status launch_write_kv(const LegokvLegolinkAttention& attention, void* stream);

// Each attends with what lies in the pool. The last two write partial results where the plan
// splits.
Status launch_attend_reference(const LegokvLegolinkAttention& attention, void* stream);
Status launch_attend_split(const AttentionCall& call, void* stream);
Status launch_attend_tiled(const AttentionCall& call, void* stream);

// Leaves partial results of what shared tiles attend to.
Status launch_attend_shared(const AttentionCall& call, void* stream);

// Puts the splits' partial results together, and what shared tiles left of the same rows.
Status launch_combine_splits(const AttentionCall& call, void* stream);

}  // namespace legokv
