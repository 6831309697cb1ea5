// Which parts of a step's sequences are attended together: those that have pages in common.
#pragma once

#include <unordered_map>
#include <vector>

#include "cpu/kernels/kernels.h"
#include "cpu/sequence_plan.h"

namespace legokv::cpu {

// Groups parts by the block that most of them have, at whatever base it stands. How they are
// grouped moves no bit: each row meets the blocks of its own part in their order.
class SharedPlan {
 public:
  // Takes parts of `sequences` of few tokens from them; groups have at most `max_tokens` tokens, a
  // KV head has `num_query_heads`.
  SharedPlan(std::vector<SequencePlan>* sequences, int max_tokens, int num_query_heads,
             int64_t token_stride);

  // Of every part: whose it is and its number there.
  struct Part {
    int sequence;
    int number;
  };

  // What is attended at once, for each KV head: its parts are the members, in order. The places
  // `left` of the members are still to be named.
  struct Group {
    std::vector<Part> parts;
    std::vector<Member> members;
    std::vector<Visit> visits;
    int num_rows;
  };

  std::vector<Group>& groups() { return groups_; }

 private:
  // Of a part, in the order of its keys. Blocks of one id have the same keys.
  struct Block {
    size_t first_run;
    int32_t num_runs;
    int32_t id;
  };

  struct Candidate {
    Part part;
    std::vector<Block> blocks;
    int shared;  // the block that most parts have
  };

  std::vector<Candidate> find_candidates(const std::vector<SequencePlan>& sequences,
                                         int most_tokens);
  std::vector<Block> find_blocks(const KeyGroup& part);
  Block block_from(size_t first_run, size_t place);
  bool same_keys(const Block& a, const Block& b) const;
  int32_t choose_shared(Candidate* candidate) const;
  void add_groups(const std::vector<SequencePlan>& sequences,
                  const std::vector<const Candidate*>& sharing, int max_tokens);
  void add_group(const std::vector<SequencePlan>& sequences,
                 const std::vector<const Candidate*>& together);
  void add_visits(const std::vector<const Candidate*>& together, const std::vector<int>& first_rows,
                  Group* group) const;

  const int num_query_heads_;
  const int64_t token_stride_;
  std::vector<KeyRun> runs_;  // of all candidates, cut where blocks end
  std::unordered_map<uint64_t, int32_t> ids_;
  std::vector<Block> kinds_;  // the first block of each id
  std::vector<int> counts_;   // of the blocks of each id
  std::vector<Group> groups_;
};

}  // namespace legokv::cpu
