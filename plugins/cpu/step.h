// One step, made ready once and used by every layer: where keys go, and the tiles to attend.
#pragma once

#include <optional>
#include <vector>

#include "cpu/instruction_sets.h"
#include "cpu/sequence_plan.h"
#include "cpu/shared_plan.h"

namespace legokv::cpu {

class Step {
 public:
  // For a step that passed check_step; it keeps nothing of the caller's.
  Step(const LegokvCpuStep& step, const Choice& choice);

  // Makes this step, which is over, the one that follows it: true where all sequences have one
  // token each, as they had, and their tables grew by what was written. Else false, and it is no
  // step.
  bool advance(const LegokvCpuStep& step, const Choice& choice);

  void attend(const LegokvCpuLayer& layer);

  int instruction_set() const { return choice_.instruction_set; }

  // Of one KV head in a layer, each key as often as it is brought to some rows.
  int64_t num_keys_read() const;

 private:
  struct Write {
    int32_t token;
    int64_t key_offset;
  };

  // Rows whose parts several tiles leave. `rows` is a tile of all the sequence's own keys, of which
  // only the rows count here.
  struct Join {
    Tile rows;
    size_t first_tile;  // of those with keys of the sequence's own, one after another
    int num_tiles;
    int num_parts;
  };

  // The tiles of some tokens of a sequence and one KV head, whose rows score keys together.
  struct Scoring {
    size_t first_tile;
    int num_shares;
    int sequence;
  };

  bool is_like(const LegokvCpuStep& step, const Choice& choice) const;
  void plan_writes(const LegokvCpuStep& step);
  void plan_tiles(const LegokvCpuStep& step);
  void add_sequence(const SequencePlan& sequence, int max_tokens);
  void add_joins(const SequencePlan& sequence, int max_tokens, size_t first_tile, int num_shares);
  void order_tiles();
  void place_parts();
  void add_shared_tiles();
  void plan_scoring(const LegokvCpuStep& step);
  void place_scores();
  void score(const LegokvCpuLayer& layer);
  void clear_unattended(void* out) const;

  const Choice choice_;
  const LegokvCpuStep begun_;  // its sizes; what it points to is gone
  const std::vector<float> inv_freq_;
  const int num_threads_;
  const int num_tokens_;
  const int num_attending_;  // tokens of the sequences; those after them give zeros
  const int element_bytes_;
  const Shape shape_;
  std::vector<Write> writes_;
  Array<float> key_turns_;  // one for each write
  std::vector<SequencePlan> sequences_;
  std::vector<Tile> tiles_;
  std::optional<SharedPlan> shared_;
  std::vector<SharedTile> shared_tiles_;
  std::vector<Join> joins_;
  std::vector<size_t> first_joins_;  // of each sequence
  std::vector<size_t> order_;        // in which the tiles are attended, those shared behind the own
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
