// The C launcher of legolink_attention: refuses what no kernel can do, then runs the kernels in
// order.
#include "legokv/alignment.h"
#include "legokv/export.h"
#include "legolink_attention/kernels.h"

namespace legokv {
namespace {

Status check_memory(const LegokvLegolinkAttention& a) {
  if (!is_aligned(a.q) || !is_aligned(a.k) || !is_aligned(a.v) || !is_aligned(a.pool) ||
      !is_aligned(a.pages) || !is_aligned(a.out) || !is_aligned(a.workspace)) {
    return invalid_argument(
        "legolink_attention: q, k, v, pool, pages, out, workspace must be 16-byte aligned");
  }
  if (a.q_stride % 8 != 0 || a.k_stride % 8 != 0 || a.v_stride % 8 != 0) {
    return invalid_argument(
        "legolink_attention: q's, k's and v's tokens are multiples of 8 elements apart, not %lld, "
        "%lld, %lld",
        static_cast<long long>(a.q_stride), static_cast<long long>(a.k_stride),
        static_cast<long long>(a.v_stride));
  }
  const bool is_listed = is_aligned(a.shared_tiles) && is_aligned(a.shared_members) &&
                         is_aligned(a.shared_pages) && a.shared_tiles && a.shared_members &&
                         a.shared_pages && a.shared_start;
  if (shares(a) && !is_listed) {
    return invalid_argument(
        "legolink_attention: %d shared tiles without lists of tiles, members, pages that are "
        "16-byte aligned, and without starts",
        a.num_shared_tiles);
  }
  const int64_t need = workspace_bytes(a);
  if (need > 0 && (a.workspace == nullptr || a.workspace_bytes < need)) {
    return invalid_argument("legolink_attention: %lld bytes of workspace are too few, %lld needed",
                            static_cast<long long>(a.workspace_bytes),
                            static_cast<long long>(need));
  }
  return Status::kOk;
}

Status launch_attend(const AttentionCall& call, void* stream) {
  switch (call.plan.regime) {
    case LEGOKV_REFERENCE:
      return launch_attend_reference(call.arguments, stream);
    case LEGOKV_SPLIT:
      return launch_attend_split(call, stream);
    default:
      return launch_attend_tiled(call, stream);
  }
}

Status run(const LegokvLegolinkAttention& attention, void* stream) {
  Status status = check_attention_shape(attention);
  if (status != Status::kOk || attention.num_tokens == 0) return status;
  status = check_memory(attention);
  if (status == Status::kOk) status = launch_write_kv(attention, stream);
  const AttentionPlans plans = plan_attention(attention);
  if (status == Status::kOk && shares(attention)) {
    status = launch_attend_shared({attention, plans.parts[0], plans.shared_floats}, stream);
  }
  for (int part = 0; part < plans.num_parts && status == Status::kOk; ++part) {
    const AttentionCall call = {attention, plans.parts[part], plans.shared_floats};
    status = launch_attend(call, stream);
    if (status == Status::kOk && call.plan.is_partial) {
      status = launch_combine_splits(call, stream);
    }
  }
  return status;
}

}  // namespace
}  // namespace legokv

LEGOKV_EXPORT int legokv_legolink_attention(const LegokvLegolinkAttention* attention,
                                            void* stream) {
  return static_cast<int>(legokv::run(*attention, stream));
}

LEGOKV_EXPORT int64_t
legokv_legolink_attention_workspace(const LegokvLegolinkAttention* attention) {
  if (legokv::check_attention_shape(*attention) != legokv::Status::kOk) return -1;
  return legokv::workspace_bytes(*attention);
}
