// One sequence of a step: its keys in groups of one base, and its queries' turns to each group.
#pragma once

#include <vector>

#include "cpu/kernels/kernels.h"
#include "cpu/memory.h"
#include "legokv/page_table.h"
#include "legokv/pool_layout.h"

namespace legokv::cpu {

class SequencePlan {
 public:
  // The tokens of `sequence` in a step that passed check_step. Slots after the last token's
  // position are left out: none of its queries may look at them.
  SequencePlan(const LegokvCpuStep& step, int sequence);

  int num_tokens() const { return static_cast<int>(positions_.size()); }

  // Tiles of at most `max_tokens` tokens that the tokens are cut into, for each KV head and part.
  int num_token_tiles(int max_tokens) const { return (num_tokens() + max_tokens - 1) / max_tokens; }

  int64_t num_keys() const;

  // Cuts the keys into about even parts, each of whole runs and at least one: one until then.
  void cut_keys(int num_parts);

  int num_parts() const { return static_cast<int>(parts_.size()); }

  // Cuts the tokens evenly into tiles of at most `max_tokens` for each KV head, the parts of a
  // tile's keys one after another. They point into this plan.
  void add_tiles(int max_tokens, int num_kv_heads, std::vector<Tile>* tiles) const;

 private:
  void find_groups(const PageRow* rows, int num_rows, const PoolLayout& layout);
  void turn_queries(const float* inv_freq, int half);
  std::vector<KeyGroup> groups_between(int64_t first_run, int64_t end_run) const;

  int first_token_;
  std::vector<int32_t> bases_;
  std::vector<std::vector<KeyRun>> runs_;
  std::vector<KeyGroup> groups_;
  std::vector<std::vector<KeyGroup>> parts_;  // together the groups
  std::vector<int32_t> positions_;
  Array<float> turns_;  // [groups, tokens, 2, D / 2]; those that see no key of the group are unset
};

}  // namespace legokv::cpu
