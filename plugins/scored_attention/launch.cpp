// The C launcher of scored_attention: legolink_attention, then the sums of its weights. The norms
// of the rows lie where the attention's partial results were.
#include "legokv/alignment.h"
#include "legokv/export.h"
#include "legolink_attention/plan.h"
#include "scored_attention/kernels.h"

namespace legokv {
namespace {

int64_t scored_workspace_bytes(const LegokvLegolinkAttention& a) {
  const int64_t norms = int64_t{a.num_tokens} * a.num_heads * int64_t{sizeof(RowNorm)};
  const int64_t partials = workspace_bytes(a);
  return norms > partials ? norms : partials;
}

Status score(const LegokvLegolinkAttention& a, const int32_t* scoring, float* mass, void* stream) {
  if (a.num_sequences == 0 || a.num_table_rows == 0) return Status::kOk;
  const ScoringCall call = {a, scoring, mass, static_cast<RowNorm*>(a.workspace)};
  const Status status = a.num_tokens == 0 ? Status::kOk : launch_norm_rows(call, stream);
  return status == Status::kOk ? launch_sum_weights(call, stream) : status;
}

Status check_shape(const LegokvLegolinkAttention& a) {
  const Status status = check_attention_shape(a);
  if (status != Status::kOk || !shares(a)) return status;
  // A mass is of a slot of a sequence's own table, and rows are weighed by what they see there.
  return invalid_argument("scored_attention: %d shared tiles, whose keys would have no mass",
                          a.num_shared_tiles);
}

Status check_memory(const LegokvLegolinkAttention& a) {
  const int64_t need = scored_workspace_bytes(a);
  if (need == 0 || (a.workspace != nullptr && a.workspace_bytes >= need)) return Status::kOk;
  return invalid_argument("scored_attention: %lld bytes of workspace are too few, %lld needed",
                          static_cast<long long>(a.workspace_bytes), static_cast<long long>(need));
}

}  // namespace
}  // namespace legokv

LEGOKV_EXPORT int legokv_scored_attention(const LegokvLegolinkAttention* attention,
                                          const int32_t* scoring, float* mass, void* stream) {
  using legokv::Status;
  Status status = legokv::check_shape(*attention);
  if (status == Status::kOk) status = legokv::check_memory(*attention);
  if (status != Status::kOk) return static_cast<int>(status);
  const int attended = legokv_legolink_attention(attention, stream);
  if (attended != LEGOKV_OK) return attended;
  return static_cast<int>(legokv::score(*attention, scoring, mass, stream));
}

LEGOKV_EXPORT int64_t legokv_scored_attention_workspace(const LegokvLegolinkAttention* attention) {
  if (legokv::check_shape(*attention) != legokv::Status::kOk) return -1;
  return legokv::scored_workspace_bytes(*attention);
}
