#include "cpu/check_step.h"

#include "legokv/dtype.h"
#include "legokv/page_table.h"

namespace legokv::cpu {
namespace {

// So far that differences of two, and a page's end, are still numbers of 32 bits.
constexpr int32_t kMostPosition = 1 << 30;

bool is_far(int32_t position) { return position < -kMostPosition || position > kMostPosition; }

Status check_sizes(const LegokvCpuStep& step) {
  if (step.head_size < 16 || step.head_size % 16 != 0) {
    return invalid_argument("head size %d is not a multiple of 16", step.head_size);
  }
  if (step.num_kv_heads < 1 || step.num_heads < 1 || step.num_heads % step.num_kv_heads != 0) {
    return invalid_argument("%d query heads cannot share %d KV heads evenly", step.num_heads,
                            step.num_kv_heads);
  }
  if (step.page_size < 1 || step.num_pool_pages < 0 || step.num_tokens < 0 ||
      step.num_sequences < 0 || step.num_table_rows < 0 || step.num_threads < 1) {
    return invalid_argument(
        "page size %d, %lld pages, %d tokens, %d sequences, %d table rows, %d threads: one is "
        "too small",
        step.page_size, static_cast<long long>(step.num_pool_pages), step.num_tokens,
        step.num_sequences, step.num_table_rows, step.num_threads);
  }
  if (!is_dtype(step.dtype)) return invalid_argument("%d is no dtype", step.dtype);
  if (!(step.scale > 0)) return invalid_argument("scale %g is not positive", step.scale);
  return Status::kOk;
}

Status check_sequences(const LegokvCpuStep& step) {
  if (step.query_start[0] != 0) {
    return invalid_argument("query_start begins with %d, not 0", step.query_start[0]);
  }
  for (int b = 0; b < step.num_sequences; ++b) {
    const int first = step.query_start[b], end = step.query_start[b + 1];
    if (end < first || end > step.num_tokens) {
      return invalid_argument(
          "query_start goes from %d to %d at sequence %d of a step of %d tokens", first, end, b,
          step.num_tokens);
    }
    if (step.scoring != nullptr && (step.scoring[b] < 0 || step.scoring[b] > end - first)) {
      return invalid_argument("%d tokens of sequence %d score keys, it has %d", step.scoring[b], b,
                              end - first);
    }
    for (int t = first + 1; t < end; ++t) {
      if (step.positions[t] < step.positions[t - 1]) {
        return invalid_argument("positions go from %d to %d at token %d of sequence %d",
                                step.positions[t - 1], step.positions[t], t, b);
      }
    }
    if (end > first && (is_far(step.positions[first]) || is_far(step.positions[end - 1]))) {
      return invalid_argument("sequence %d has positions %d to %d, they end at %d", b,
                              step.positions[first], step.positions[end - 1], kMostPosition);
    }
  }
  return Status::kOk;
}

Status check_pages(const LegokvCpuStep& step) {
  const int64_t num_rows = int64_t{step.num_sequences} * step.num_table_rows;
  const auto* rows = reinterpret_cast<const PageRow*>(step.pages);
  for (int64_t i = 0; i < num_rows; ++i) {
    const PageRow& row = rows[i];
    if (row.filled <= 0) continue;
    if (row.page < 0 || row.page >= step.num_pool_pages || row.filled > step.page_size) {
      return invalid_argument(
          "a table row has page %d with %d filled slots, the pool has %lld pages of %d", row.page,
          row.filled, static_cast<long long>(step.num_pool_pages), step.page_size);
    }
    if (is_far(row.base) || is_far(row.first_position)) {
      return invalid_argument("a table row has base %d and begins at position %d, they end at %d",
                              row.base, row.first_position, kMostPosition);
    }
  }
  return Status::kOk;
}

}  // namespace

Status check_step(const LegokvCpuStep& step) {
  Status status = check_sizes(step);
  if (status == Status::kOk) status = check_sequences(step);
  if (status == Status::kOk) status = check_pages(step);
  return status;
}

}  // namespace legokv::cpu
