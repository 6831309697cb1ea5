// One sequence of a step: its keys in parts of one base, and its queries' turns to each base.
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

  // Makes the plan of a sequence's one token that of the token behind it: true where its table is
  // as it was, but that its last page is fuller or another follows. Else false, and it is no plan.
  bool advance(const LegokvCpuStep& step, int sequence);

  int num_tokens() const { return static_cast<int>(positions_.size()); }

  // Tiles of at most `max_tokens` tokens that the tokens are cut into, for each KV head and share.
  int num_token_tiles(int max_tokens) const { return (num_tokens() + max_tokens - 1) / max_tokens; }

  int num_parts() const { return static_cast<int>(parts_.size()); }

  const KeyGroup& part(int number) const { return part_groups_[number]; }

  int first_token() const { return first_token_; }

  // Whether all tokens see all keys of a part.
  bool sees_whole(int part) const;

  // Leaves parts to shared tiles: `add_tiles` cuts the others, which are its own.
  void give_away(const std::vector<bool>& parts);

  int num_own_parts() const { return static_cast<int>(groups_.size()); }
  int64_t num_own_keys() const;

  // Cuts the tokens evenly into tiles of at most `max_tokens` for each KV head, and the parts of
  // each into `num_shares` shares of about as many, one tile after another. They point into this
  // plan.
  void add_tiles(int max_tokens, int num_kv_heads, int num_shares, std::vector<Tile>* tiles) const;

 private:
  struct Part {
    int32_t base;
    int32_t num_keys;
    int32_t first_block;
    std::vector<KeyRun> runs;
  };

  void find_parts(const PoolLayout& layout);
  bool grow_row(const PageRow& row, int page_size);
  bool follow_row(const PageRow& row, const PoolLayout& layout);
  Part* growing_part(int page_size);
  bool add_keys(Part* part, int num_keys);
  void turn_anew(const float* inv_freq, int half);
  void add_run(KeyRun run, int64_t token_stride);
  void turn_queries(const float* inv_freq, int half);
  void write_turns(const Part& part, const float* inv_freq, int half, float* turns) const;

  int first_token_;
  std::vector<PageRow> rows_;  // of its table, up to the last with filled slots
  bool hides_keys_ = false;    // whether filled slots lie past the last token
  std::vector<Part> parts_;
  std::vector<KeyGroup> part_groups_;  // one for each part
  std::vector<KeyGroup> groups_;       // of the parts that are not given away
  std::vector<int32_t> positions_;
  Array<float> turns_;  // [bases, tokens, 2, D / 2]; those that see no key of the base are unset
};

}  // namespace legokv::cpu
