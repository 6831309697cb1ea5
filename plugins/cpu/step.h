// One step, made ready once and used by every layer: where keys go, and the tiles to attend.
#pragma once

#include <vector>

#include "cpu/instruction_sets.h"
#include "cpu/sequence_plan.h"

namespace legokv::cpu {

class Step {
 public:
  // For a step that passed check_step; it keeps nothing of the caller's.
  Step(const LegokvCpuStep& step, const Choice& choice);

  void attend(const LegokvCpuLayer& layer);

  int instruction_set() const { return choice_.instruction_set; }

 private:
  struct Write {
    int32_t token;
    int64_t key_offset;
  };

  // Some tiles of one KV head of a sequence, one after another, that differ in their keys only.
  struct Shared {
    size_t first_tile;
    int num_shares;
    int num_parts;  // of all shares
  };

  // The tiles of some tokens of a sequence and one KV head, whose rows score keys together.
  struct Scoring {
    size_t first_tile;
    int num_shares;
    int sequence;
  };

  void plan_writes(const LegokvCpuStep& step);
  void plan_tiles(const LegokvCpuStep& step);
  void add_sequence(SequencePlan* sequence, int max_tokens);
  void order_tiles();
  void place_parts();
  void plan_scoring(const LegokvCpuStep& step);
  void place_scores();
  void score(const LegokvCpuLayer& layer);
  void clear_unattended(void* out) const;

  const Choice choice_;
  const int num_threads_;
  const int num_tokens_;
  const int num_attending_;  // tokens of the sequences; those after them give zeros
  const int element_bytes_;
  const Shape shape_;
  std::vector<Write> writes_;
  Array<float> key_turns_;  // one for each write
  std::vector<SequencePlan> sequences_;
  std::vector<Tile> tiles_;
  std::vector<Shared> shared_;
  std::vector<size_t> order_;  // in which the tiles are attended
  Array<float> parts_;
  const int64_t num_places_;          // of a sequence's page table: rows times slots
  std::vector<int32_t> num_scoring_;  // of each sequence's last tokens; empty: no masses are asked
  std::vector<int> num_shares_;       // of each sequence's tiles
  std::vector<Scoring> scoring_;
  std::vector<size_t> scoring_tiles_;
  Array<float> stats_;
  Array<float> masses_;  // [scoring_, places]
  int64_t scratch_bytes_;
  Array<char> scratch_;  // for each thread
};

}  // namespace legokv::cpu
