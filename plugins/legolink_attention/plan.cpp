#include "legolink_attention/plan.h"

#include <algorithm>

#include "legokv/dtype.h"
#include "legokv/page_table.h"

namespace legokv {
namespace {

// Blocks that keep a large GPU busy, about four on each of an H100's 132 multiprocessors.
constexpr int64_t kTargetBlocks = 512;
// Fewer strips than this for a split cost more to combine than they save.
constexpr int kMinSplitStrips = 8;
// Below this many query rows a sequence, most of a tensor-core tile would be empty.
constexpr int kFewRows = 16;

int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

int64_t rows_per_kv_head(const LegokvLegolinkAttention& a) {
  return int64_t{a.num_tokens} * (a.num_heads / a.num_kv_heads);
}

int choose_regime(const LegokvLegolinkAttention& a) {
  if (a.regime != LEGOKV_AUTO) return a.regime;
  const bool few_rows = rows_per_kv_head(a) < int64_t{kFewRows} * a.num_sequences;
  return a.dtype == LEGOKV_FLOAT32 || few_rows ? LEGOKV_SPLIT : LEGOKV_TILED;
}

int choose_splits(const LegokvLegolinkAttention& a, int regime) {
  if (regime == LEGOKV_REFERENCE) return 1;
  const int64_t tiles = regime == LEGOKV_TILED
                            ? divide_up(rows_per_kv_head(a), kTileRows)
                            : a.num_tokens * divide_up(a.num_heads / a.num_kv_heads, kMaxSplitRows);
  const int64_t strips = int64_t{a.num_table_rows} * (a.page_size / kStripKeys);
  const int64_t wanted = divide_up(kTargetBlocks, std::max<int64_t>(1, tiles * a.num_kv_heads));
  const int64_t worthwhile = std::max<int64_t>(1, strips / kMinSplitStrips);
  return static_cast<int>(std::min({wanted, worthwhile, int64_t{kMaxSplits}}));
}

// Floats of one query row's partial result: the weighted sum of values, the maximum, the sum.
int64_t partial_floats(const LegokvLegolinkAttention& a) { return a.head_size + 2; }

}  // namespace

bool is_supported_head_size(int size) {
  return size == 64 || size == 80 || size == 96 || size == 128;
}

bool is_supported_page_size(int size) { return size == 16 || size == 32 || size == 64; }

Status check_attention_shape(const LegokvLegolinkAttention& a) {
  if (!is_dtype(a.dtype)) {
    return invalid_argument("legolink_attention: dtype is 0, 1 or 2, not %d", a.dtype);
  }
  if (!is_supported_head_size(a.head_size)) {
    return invalid_argument(
        "legolink_attention: no kernel for head size %d; 64, 80, 96, 128 have one", a.head_size);
  }
  if (!is_supported_page_size(a.page_size)) {
    return invalid_argument("legolink_attention: no kernel for page size %d; 16, 32, 64 have one",
                            a.page_size);
  }
  if (a.num_kv_heads <= 0 || a.num_heads <= 0 || a.num_heads % a.num_kv_heads != 0) {
    return invalid_argument("legolink_attention: %d KV heads do not divide %d query heads",
                            a.num_kv_heads, a.num_heads);
  }
  if (a.num_tokens < 0 || a.num_sequences < 0 || a.num_table_rows < 0 || a.num_pool_pages < 0) {
    return invalid_argument(
        "legolink_attention: a negative count: %d tokens, %d sequences, %d rows", a.num_tokens,
        a.num_sequences, a.num_table_rows);
  }
  if (int64_t{a.num_tokens} * a.num_heads * kMaxSplits > INT32_MAX ||
      int64_t{a.num_table_rows} * 4 > INT32_MAX || a.num_kv_heads > 65535) {
    return invalid_argument("legolink_attention: %d tokens of %d heads over %d rows: too many",
                            a.num_tokens, a.num_heads, a.num_table_rows);
  }
  if (a.regime < LEGOKV_AUTO || a.regime > LEGOKV_TILED ||
      (a.regime == LEGOKV_TILED && a.dtype == LEGOKV_FLOAT32)) {
    return invalid_argument("legolink_attention: regime %d does not do dtype %d", a.regime,
                            a.dtype);
  }
  return Status::kOk;
}

AttentionPlan plan_attention(const LegokvLegolinkAttention& a) {
  const int regime = choose_regime(a);
  return {regime, choose_splits(a, regime)};
}

int64_t workspace_bytes(const LegokvLegolinkAttention& a) {
  const int splits = plan_attention(a).num_splits;
  if (splits == 1) return 0;
  return splits * int64_t{a.num_tokens} * a.num_heads * partial_floats(a) *
         static_cast<int64_t>(sizeof(float));
}

int64_t max_workspace_bytes(LegokvLegolinkAttention a) {
  int64_t most = 0;
  const int max_tokens = a.num_tokens;
  for (const int regime : {LEGOKV_SPLIT, LEGOKV_TILED}) {
    a.regime = regime;
    for (a.num_tokens = 1; a.num_tokens <= max_tokens; ++a.num_tokens) {
      most = std::max(most, workspace_bytes(a));
    }
  }
  return most;
}

}  // namespace legokv
