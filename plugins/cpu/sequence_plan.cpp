#include "cpu/sequence_plan.h"

#include <algorithm>

#include "cpu/turn.h"

namespace legokv::cpu {
namespace {

std::vector<PageRow> seen_rows(const PageRow* rows, int num_rows, int last_position) {
  std::vector<PageRow> seen;
  for (const PageRow* row = rows; row != rows + num_rows; ++row) {
    if (row->filled > 0 && sees(last_position, row->first_position)) seen.push_back(*row);
  }
  std::sort(seen.begin(), seen.end(), [](const PageRow& a, const PageRow& b) {
    return a.base != b.base ? a.base < b.base : a.first_position < b.first_position;
  });
  return seen;
}

}  // namespace

SequencePlan::SequencePlan(const LegokvCpuStep& step, int sequence)
    : first_token_(step.query_start[sequence]) {
  const int end = step.query_start[sequence + 1];
  if (end == first_token_) return;
  positions_.assign(step.positions + first_token_, step.positions + end);
  const auto* rows = reinterpret_cast<const PageRow*>(step.pages);
  find_groups(rows + int64_t{sequence} * step.num_table_rows, step.num_table_rows,
              {step.page_size, step.num_kv_heads, step.head_size});
  turn_queries(step.inv_freq, step.head_size / 2);
  cut_keys(1);
}

int64_t SequencePlan::num_keys() const {
  int64_t count = 0;
  for (const auto& runs : runs_) {
    for (const KeyRun& run : runs) count += run.num_keys;
  }
  return count;
}

void SequencePlan::cut_keys(int num_parts) {
  int64_t num_runs = 0;
  for (const KeyGroup& group : groups_) num_runs += group.num_runs;
  // One part even of no keys: its rows are zeros.
  num_parts = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(num_parts, num_runs)));
  parts_.clear();
  for (int part = 0; part < num_parts; ++part) {
    parts_.push_back(
        groups_between(num_runs * part / num_parts, num_runs * (part + 1) / num_parts));
  }
}

std::vector<KeyGroup> SequencePlan::groups_between(int64_t first_run, int64_t end_run) const {
  std::vector<KeyGroup> groups;
  for (const KeyGroup& group : groups_) {
    const int64_t first = std::max<int64_t>(first_run, 0);
    const int64_t end = std::min<int64_t>(end_run, group.num_runs);
    if (first < end) {
      const KeyRun* runs = group.runs + first;
      groups.push_back(
          {runs, static_cast<int32_t>(end - first), runs->first_position, group.turns});
    }
    first_run -= group.num_runs;
    end_run -= group.num_runs;
  }
  return groups;
}

void SequencePlan::find_groups(const PageRow* rows, int num_rows, const PoolLayout& layout) {
  const int last_position = positions_.back();
  for (const PageRow& row : seen_rows(rows, num_rows, last_position)) {
    if (bases_.empty() || bases_.back() != row.base) {
      bases_.push_back(row.base);
      runs_.emplace_back();
    }
    const int num_keys = std::min(row.filled, last_position - row.first_position + 1);
    runs_.back().push_back({key_offset(layout, row.page, 0, 0), row.first_position, num_keys});
  }
}

void SequencePlan::turn_queries(const float* inv_freq, int half) {
  const int64_t num_tokens = static_cast<int64_t>(positions_.size());
  turns_ = uninitialised<float>(num_tokens * static_cast<int64_t>(runs_.size()) * 2 * half);
  for (size_t g = 0; g < runs_.size(); ++g) {
    float* turns = turns_.get() + static_cast<int64_t>(g) * num_tokens * 2 * half;
    const KeyRun& first = runs_[g].front();
    for (int64_t t = 0; t < num_tokens; ++t) {
      if (!sees(positions_[t], first.first_position)) continue;
      write_turn(positions_[t] - bases_[g], inv_freq, half, turns + t * 2 * half);
    }
    groups_.push_back(
        {runs_[g].data(), static_cast<int32_t>(runs_[g].size()), first.first_position, turns});
  }
}

void SequencePlan::add_tiles(int max_tokens, int num_kv_heads, std::vector<Tile>* tiles) const {
  const int num_tiles = num_token_tiles(max_tokens);
  for (int i = 0; i < num_tiles; ++i) {
    const int first = part_begin(num_tokens(), i, num_tiles);
    const int count = part_begin(num_tokens(), i + 1, num_tiles) - first;
    for (int head = 0; head < num_kv_heads; ++head) {
      for (const auto& groups : parts_) {
        tiles->push_back({groups.data(), positions_.data() + first,
                          static_cast<int32_t>(groups.size()), first_token_ + first, first, count,
                          head, nullptr});
      }
    }
  }
}

}  // namespace legokv::cpu
