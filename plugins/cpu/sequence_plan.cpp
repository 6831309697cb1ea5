#include "cpu/sequence_plan.h"

#include <algorithm>
#include <cstring>

#include "cpu/turn.h"

namespace legokv::cpu {
namespace {

// What a link computes anew at a base's beginning fills whole pages there. They are not other
// requests' pages, so a part that may begin so has a first block of few keys.
int short_block(int page_size) {
  constexpr int kLeastKeys = 16;
  const int num_pages = (kLeastKeys + page_size - 1) / page_size;
  return std::min(num_pages * page_size, kBlockKeys);
}

// In the order of the parts.
std::vector<const PageRow*> seen_rows(const std::vector<PageRow>& rows, int last_position) {
  std::vector<const PageRow*> seen;
  for (const PageRow& row : rows) {
    if (row.filled > 0 && sees(last_position, row.first_position)) seen.push_back(&row);
  }
  std::sort(seen.begin(), seen.end(), [](const PageRow* a, const PageRow* b) {
    return a->base != b->base ? a->base < b->base : a->first_position < b->first_position;
  });
  return seen;
}

// The sequence's part of a step's table, up to its last row with filled slots.
struct Rows {
  const PageRow *begin, *end;

  Rows(const LegokvCpuStep& step, int sequence)
      : begin(reinterpret_cast<const PageRow*>(step.pages) +
              int64_t{sequence} * step.num_table_rows),
        end(begin + step.num_table_rows) {
    while (end != begin && end[-1].filled <= 0) --end;
  }
};

int last_position_of(const PageRow& row) { return row.first_position + row.filled - 1; }

PoolLayout layout_of(const LegokvCpuStep& step) {
  return {step.page_size, step.num_kv_heads, step.head_size};
}

}  // namespace

SequencePlan::SequencePlan(const LegokvCpuStep& step, int sequence)
    : first_token_(step.query_start[sequence]) {
  const int end = step.query_start[sequence + 1];
  if (end == first_token_) return;
  positions_.assign(step.positions + first_token_, step.positions + end);
  const Rows rows(step, sequence);
  rows_.assign(rows.begin, rows.end);
  for (const PageRow& row : rows_) {
    hides_keys_ |= row.filled > 0 && !sees(positions_.back(), last_position_of(row));
  }
  find_parts(layout_of(step));
  turn_queries(step.inv_freq, step.head_size / 2);
}

bool SequencePlan::advance(const LegokvCpuStep& step, int sequence) {
  const Rows rows(step, sequence);
  const int position = step.positions[first_token_];
  const size_t num_known = rows_.size(), num_rows = static_cast<size_t>(rows.end - rows.begin);
  const bool may_be_next = num_tokens() == 1 && !hides_keys_ && position >= positions_[0] &&
                           num_known > 0 && (num_rows == num_known || num_rows == num_known + 1);
  if (!may_be_next || !sees(position, last_position_of(rows.end[-1]))) return false;
  const size_t num_settled = num_known - 1;
  if (memcmp(rows.begin, rows_.data(), num_settled * sizeof(PageRow)) != 0) return false;
  if (!grow_row(rows.begin[num_settled], step.page_size)) return false;
  if (num_rows > num_known && !follow_row(rows.begin[num_known], layout_of(step))) return false;
  positions_[0] = position;
  turn_anew(step.inv_freq, step.head_size / 2);
  return true;
}

// `row` stands where the last one did.
bool SequencePlan::grow_row(const PageRow& row, int page_size) {
  PageRow& last = rows_.back();
  if (row.page != last.page || row.base != last.base || row.first_position != last.first_position ||
      row.filled < last.filled) {
    return false;
  }
  const int num_keys = row.filled - last.filled;
  last.filled = row.filled;
  if (num_keys == 0) return true;
  Part* part = growing_part(page_size);
  if (part == nullptr) return false;
  part->runs.back().num_keys += num_keys;
  return add_keys(part, num_keys);
}

// `row` comes behind the last one, to a part that goes on.
bool SequencePlan::follow_row(const PageRow& row, const PoolLayout& layout) {
  const PageRow last = rows_.back();
  if (row.base != last.base || row.first_position <= last_position_of(last) ||
      last.filled < layout.page_size) {
    return false;
  }
  Part* part = growing_part(layout.page_size);
  if (part == nullptr) return false;
  part->runs.push_back({key_offset(layout, row.page, 0, 0), row.first_position, row.filled,
                        static_cast<int32_t>(rows_.size()) * layout.page_size});
  rows_.push_back(row);
  return add_keys(part, row.filled);
}

// That of the last row, if it is the last of its base and the sequence's own.
SequencePlan::Part* SequencePlan::growing_part(int page_size) {
  const int row = static_cast<int>(rows_.size()) - 1;
  for (const KeyGroup& group : groups_) {
    Part& part = parts_[group.part];
    const size_t next = static_cast<size_t>(group.part) + 1;
    const bool is_last = next == parts_.size() || parts_[next].base != part.base;
    if (is_last && part.runs.back().first_place / page_size == row) return &part;
  }
  return nullptr;
}

// Its runs have so many more by now.
bool SequencePlan::add_keys(Part* part, int num_keys) {
  part->num_keys += num_keys;
  const auto number = static_cast<int32_t>(part - parts_.data());
  for (std::vector<KeyGroup>* groups : {&part_groups_, &groups_}) {
    for (KeyGroup& group : *groups) {
      if (group.part != number) continue;
      group.runs = part->runs.data();
      group.num_runs = static_cast<int32_t>(part->runs.size());
    }
  }
  return part->num_keys <= kPartKeys;
}

void SequencePlan::turn_anew(const float* inv_freq, int half) {
  float* turns = turns_.get();
  for (size_t i = 0; i < parts_.size(); ++i) {
    if (i > 0 && parts_[i].base == parts_[i - 1].base) continue;
    write_turns(parts_[i], inv_freq, half, turns);
    turns += num_tokens() * int64_t{2} * half;
  }
}

bool SequencePlan::sees_whole(int part) const {
  const KeyRun& last = parts_[part].runs.back();
  return sees(positions_.front(), last.first_position + last.num_keys - 1);
}

void SequencePlan::give_away(const std::vector<bool>& parts) {
  groups_.clear();
  for (const KeyGroup& group : part_groups_) {
    if (!parts[group.part]) groups_.push_back(group);
  }
}

int64_t SequencePlan::num_own_keys() const {
  int64_t count = 0;
  for (const KeyGroup& group : groups_) count += parts_[group.part].num_keys;
  return count;
}

void SequencePlan::find_parts(const PoolLayout& layout) {
  const int last_position = positions_.back();
  const PageRow* before = nullptr;
  for (const PageRow* row : seen_rows(rows_, last_position)) {
    // A page that is not full ends a chunk; another one's may be linked behind it.
    if (before == nullptr || before->base != row->base || before->filled < layout.page_size) {
      parts_.push_back({row->base, 0, short_block(layout.page_size), {}});
    }
    const int num_keys = std::min(row->filled, last_position - row->first_position + 1);
    const int first_place = static_cast<int>(row - rows_.data()) * layout.page_size;
    add_run({key_offset(layout, row->page, 0, 0), row->first_position, num_keys, first_place},
            token_stride(layout));
    before = row;
  }
}

// A base's keys ascend by position, so those past a row's last move no cut that it sees.
void SequencePlan::add_run(KeyRun run, int64_t token_stride) {
  while (run.num_keys > 0) {
    if (parts_.back().num_keys == kPartKeys) {
      parts_.push_back({parts_.back().base, 0, kBlockKeys, {}});
    }
    Part& part = parts_.back();
    const int taken = std::min(run.num_keys, kPartKeys - part.num_keys);
    part.runs.push_back({run.key_offset, run.first_position, taken, run.first_place});
    part.num_keys += taken;
    run = {run.key_offset + taken * token_stride, run.first_position + taken, run.num_keys - taken,
           run.first_place + taken};
  }
}

void SequencePlan::turn_queries(const float* inv_freq, int half) {
  const int64_t turn_floats = num_tokens() * int64_t{2} * half;
  const auto begins = [this](size_t i) { return i == 0 || parts_[i].base != parts_[i - 1].base; };
  int64_t num_bases = 0;
  for (size_t i = 0; i < parts_.size(); ++i) num_bases += begins(i);
  turns_ = uninitialised<float>(turn_floats * num_bases);
  float *turns = nullptr, *next_turns = turns_.get();
  for (size_t i = 0; i < parts_.size(); ++i) {
    const Part& part = parts_[i];
    if (begins(i)) {
      turns = next_turns;
      next_turns += turn_floats;
      write_turns(part, inv_freq, half, turns);
    }
    groups_.push_back({part.runs.data(), static_cast<int32_t>(part.runs.size()), part.first_block,
                       part.runs.front().first_position, static_cast<int32_t>(i), turns});
  }
  part_groups_ = groups_;
}

// `part` is the first of its base.
void SequencePlan::write_turns(const Part& part, const float* inv_freq, int half,
                               float* turns) const {
  for (const int32_t position : positions_) {
    if (sees(position, part.runs.front().first_position)) {
      write_turn(position - part.base, inv_freq, half, turns);
    }
    turns += 2 * half;
  }
}

void SequencePlan::add_tiles(int max_tokens, int num_kv_heads, int num_shares,
                             std::vector<Tile>* tiles) const {
  const int num_tiles = num_token_tiles(max_tokens);
  for (int i = 0; i < num_tiles; ++i) {
    const int first = part_begin(num_tokens(), i, num_tiles);
    const int count = part_begin(num_tokens(), i + 1, num_tiles) - first;
    for (int head = 0; head < num_kv_heads; ++head) {
      for (int share = 0; share < num_shares; ++share) {
        const int first_part = part_begin(num_own_parts(), share, num_shares);
        tiles->push_back({groups_.data() + first_part, positions_.data() + first,
                          part_begin(num_own_parts(), share + 1, num_shares) - first_part,
                          first_token_ + first, first, count, head, nullptr, 0, nullptr, nullptr});
      }
    }
  }
}

}  // namespace legokv::cpu
