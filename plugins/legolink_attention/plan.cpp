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

int few_tokens_of(const LegokvLegolinkAttention& a) {
  return few_tokens(a.num_heads / a.num_kv_heads);
}

// As many tokens as sequences are decodes: that one has several and another none costs time only.
// The rows of shared tiles are the split kernel's.
int choose_regime(const LegokvLegolinkAttention& a) {
  if (a.regime != LEGOKV_AUTO) return a.regime;
  if (a.dtype == LEGOKV_FLOAT32) return LEGOKV_SPLIT;
  const int few = few_tokens_of(a);
  if (few == 0) return LEGOKV_TILED;
  if (a.num_tokens <= few || a.num_tokens <= a.num_sequences) return LEGOKV_SPLIT;
  return a.num_sequences <= 1 && !shares(a) ? LEGOKV_TILED : LEGOKV_MIXED;
}

// `num_tokens`: about how many are this kernel's.
int choose_splits(const LegokvLegolinkAttention& a, int regime, int64_t num_tokens) {
  if (regime == LEGOKV_REFERENCE) return 1;
  if (a.num_splits > 0) return a.num_splits;
  const int64_t tiles = regime == LEGOKV_TILED
                            ? divide_up(rows_per_kv_head(a), kTileRows)
                            : num_tokens * divide_up(a.num_heads / a.num_kv_heads, kMaxSplitRows);
  const int64_t strips = int64_t{a.num_table_rows} * (a.page_size / kStripKeys);
  const int64_t target = regime == LEGOKV_TILED ? kTargetTiles : kTargetBlocks;
  const int64_t wanted = divide_up(target, std::max<int64_t>(1, tiles * a.num_kv_heads));
  const int64_t worthwhile = std::max<int64_t>(1, strips / kMinSplitStrips);
  return static_cast<int>(std::min({wanted, worthwhile, int64_t{kMaxSplits}}));
}

// Of one query row: the weighted sum of values, the maximum, the sum.
int64_t partial_floats(const LegokvLegolinkAttention& a, const AttentionPlan& plan) {
  if (!plan.is_partial) return 0;
  return plan.num_splits * partial_rows(a, plan) * (a.head_size + 2);
}

AttentionPlan plan_of(const LegokvLegolinkAttention& a, int regime, int64_t num_tokens, int few) {
  const int splits = choose_splits(a, regime, num_tokens);
  const bool is_shared = shares(a) && regime == LEGOKV_SPLIT;
  return {regime, splits, few, splits > 1 || is_shared, 0};
}

AttentionPlan plan_alone(const LegokvLegolinkAttention& a, int regime) {
  return plan_of(a, regime, a.num_tokens, 0);
}

// Sequences of few tokens are mostly decodes, of one.
AttentionPlans plan_mixed(const LegokvLegolinkAttention& a) {
  const int few = few_tokens_of(a);
  const AttentionPlan split = plan_of(a, LEGOKV_SPLIT, a.num_sequences, few);
  AttentionPlan tiled = plan_of(a, LEGOKV_TILED, a.num_tokens, few);
  tiled.workspace_floats = partial_floats(a, split);
  return {{split, tiled}, 2, 0};
}

// What tiles of several sequences have places for: a token's heads for each member.
int64_t shared_floats(const LegokvLegolinkAttention& a) {
  return shares(a) ? int64_t{a.num_shared_members} * a.num_heads * (a.head_size + 2) : 0;
}

Status check_shared(const LegokvLegolinkAttention& a) {
  if (a.num_shared_tiles < 0 || a.num_shared_members < 0 || a.num_shared_pages < 0) {
    return invalid_argument(
        "legolink_attention: a negative count: %d shared tiles, %d members, %d pages",
        a.num_shared_tiles, a.num_shared_members, a.num_shared_pages);
  }
  if (!shares(a)) return Status::kOk;
  const bool has_kernel =
      a.regime == LEGOKV_AUTO || a.regime == LEGOKV_SPLIT || a.regime == LEGOKV_MIXED;
  if (a.dtype == LEGOKV_FLOAT32 || !has_kernel || few_tokens_of(a) == 0) {
    return invalid_argument(
        "legolink_attention: regime %d with dtype %d and %d query heads a KV head shares no tiles",
        a.regime, a.dtype, a.num_heads / a.num_kv_heads);
  }
  if (int64_t{a.num_shared_members} * a.num_heads > INT32_MAX ||
      int64_t{a.num_shared_pages} * 4 > INT32_MAX) {
    return invalid_argument(
        "legolink_attention: %d members of shared tiles over %d pages: too many",
        a.num_shared_members, a.num_shared_pages);
  }
  return Status::kOk;
}

}  // namespace

int few_tokens(int heads_per_kv_head) { return (kFewRows - 1) / heads_per_kv_head; }

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
  if (a.num_splits < 0 || a.num_splits > kMaxSplits) {
    return invalid_argument("legolink_attention: %d splits, there are 0 to %d", a.num_splits,
                            kMaxSplits);
  }
  if (a.num_tokens < 0 || a.num_sequences < 0 || a.num_table_rows < 0 || a.num_pool_pages < 0) {
    return invalid_argument(
        "legolink_attention: a negative count: %d tokens, %d sequences, %d rows", a.num_tokens,
        a.num_sequences, a.num_table_rows);
  }
  if (int64_t{a.num_tokens} * a.num_heads * kMaxSplits > INT32_MAX ||
      int64_t{a.num_table_rows} * 4 > INT32_MAX || a.num_kv_heads > 65535 ||
      int64_t{a.num_sequences} * kFewRows > INT32_MAX) {
    return invalid_argument("legolink_attention: %d tokens of %d heads over %d rows: too many",
                            a.num_tokens, a.num_heads, a.num_table_rows);
  }
  if (a.regime < LEGOKV_AUTO || a.regime > LEGOKV_MIXED ||
      (a.regime >= LEGOKV_TILED && a.dtype == LEGOKV_FLOAT32)) {
    return invalid_argument("legolink_attention: regime %d does not do dtype %d", a.regime,
                            a.dtype);
  }
  return check_shared(a);
}

AttentionPlans plan_attention(const LegokvLegolinkAttention& a) {
  const int regime = choose_regime(a);
  AttentionPlans plans;
  if (regime == LEGOKV_MIXED && few_tokens_of(a) > 0) {
    plans = plan_mixed(a);
  } else {
    plans = {{plan_alone(a, regime == LEGOKV_MIXED ? int{LEGOKV_TILED} : regime), {}}, 1, 0};
  }
  const AttentionPlan& last = plans.parts[plans.num_parts - 1];
  plans.shared_floats = last.workspace_floats + partial_floats(a, last);
  return plans;
}

int64_t workspace_bytes(const LegokvLegolinkAttention& a) {
  return (plan_attention(a).shared_floats + shared_floats(a)) * static_cast<int64_t>(sizeof(float));
}

int64_t max_workspace_bytes(LegokvLegolinkAttention a) {
  int64_t few = 0, split = 0, tiled = 0;
  const int max_sequences = a.num_sequences, max_tokens = a.num_tokens;
  for (a.num_sequences = 1; a.num_sequences <= max_sequences && few_tokens_of(a) > 0;
       ++a.num_sequences) {
    few = std::max(few, partial_floats(a, plan_mixed(a).parts[0]));
  }
  for (a.num_tokens = 1; a.num_tokens <= max_tokens; ++a.num_tokens) {
    split = std::max(split, partial_floats(a, plan_alone(a, LEGOKV_SPLIT)));
    tiled = std::max(tiled, partial_floats(a, plan_alone(a, LEGOKV_TILED)));
  }
  return std::max(split, few + tiled) * static_cast<int64_t>(sizeof(float));
}

}  // namespace legokv
