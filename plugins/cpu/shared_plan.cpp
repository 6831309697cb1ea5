#include "cpu/shared_plan.h"

#include <algorithm>
#include <map>
#include <utility>

namespace legokv::cpu {
namespace {

// A sequence of more has rows enough of its own for a block of keys.
constexpr int kFewTokens = 16;

}  // namespace

SharedPlan::SharedPlan(std::vector<SequencePlan>* sequences, int max_tokens, int num_query_heads,
                       int64_t token_stride)
    : num_query_heads_(num_query_heads), token_stride_(token_stride) {
  std::vector<std::vector<bool>> given;
  for (const SequencePlan& sequence : *sequences) given.emplace_back(sequence.num_parts(), false);
  std::vector<Candidate> candidates = find_candidates(*sequences, std::min(kFewTokens, max_tokens));
  std::map<int32_t, std::vector<const Candidate*>> by_block;
  for (Candidate& candidate : candidates) {
    const int32_t id = choose_shared(&candidate);
    if (counts_[id] > 1) by_block[id].push_back(&candidate);
  }
  for (const auto& [id, sharing] : by_block) {
    if (sharing.size() == 1) continue;
    add_groups(*sequences, sharing, max_tokens);
    for (const Candidate* each : sharing) given[each->part.sequence][each->part.number] = true;
  }
  for (size_t s = 0; s < sequences->size(); ++s) (*sequences)[s].give_away(given[s]);
}

std::vector<SharedPlan::Candidate> SharedPlan::find_candidates(
    const std::vector<SequencePlan>& sequences, int most_tokens) {
  std::vector<Candidate> candidates;
  for (size_t s = 0; s < sequences.size(); ++s) {
    if (sequences[s].num_tokens() > most_tokens) continue;
    for (int p = 0; p < sequences[s].num_parts(); ++p) {
      if (!sequences[s].sees_whole(p)) continue;
      candidates.push_back({{static_cast<int>(s), p}, find_blocks(sequences[s].part(p)), 0});
    }
  }
  return candidates;
}

std::vector<SharedPlan::Block> SharedPlan::find_blocks(const KeyGroup& part) {
  std::vector<Block> blocks;
  size_t first_run = runs_.size();
  int left = part.first_block;
  for (const KeyRun* run = part.runs; run != part.runs + part.num_runs; ++run) {
    for (int used = 0, taken = 0; used < run->num_keys; used += taken) {
      taken = std::min(run->num_keys - used, left);
      runs_.push_back({run->key_offset + used * token_stride_, run->first_position + used, taken,
                       run->first_place + used});
      left -= taken;
      if (left > 0) continue;
      blocks.push_back(block_from(first_run, blocks.size()));
      first_run = runs_.size();
      left = kBlockKeys;
    }
  }
  if (first_run < runs_.size()) blocks.push_back(block_from(first_run, blocks.size()));
  return blocks;
}

// Of the runs from `first_run` to the last, as block `place` of its part.
SharedPlan::Block SharedPlan::block_from(size_t first_run, size_t place) {
  uint64_t digest = place;
  const auto add = [&digest](int64_t number) {
    digest = (digest ^ static_cast<uint64_t>(number)) * 0x9e3779b97f4a7c15u;
    digest ^= digest >> 29;
  };
  for (size_t run = first_run; run < runs_.size(); ++run) {
    add(runs_[run].key_offset);
    add(runs_[run].num_keys);
  }
  Block block = {first_run, static_cast<int32_t>(runs_.size() - first_run),
                 static_cast<int32_t>(kinds_.size())};
  const auto [known, is_new] = ids_.emplace(digest, block.id);
  // What has a digest by chance is a kind of its own.
  if (!is_new && same_keys(kinds_[known->second], block)) block.id = known->second;
  if (block.id == static_cast<int32_t>(kinds_.size())) {
    kinds_.push_back(block);
    counts_.push_back(0);
  }
  ++counts_[block.id];
  return block;
}

bool SharedPlan::same_keys(const Block& a, const Block& b) const {
  const auto same = [](const KeyRun& x, const KeyRun& y) {
    return x.key_offset == y.key_offset && x.num_keys == y.num_keys;
  };
  const KeyRun *first = &runs_[a.first_run], *other = &runs_[b.first_run];
  return a.num_runs == b.num_runs && std::equal(first, first + a.num_runs, other, same);
}

// The id of the candidate's block that most parts have.
int32_t SharedPlan::choose_shared(Candidate* candidate) const {
  const auto most = std::max_element(
      candidate->blocks.begin(), candidate->blocks.end(),
      [this](const Block& a, const Block& b) { return counts_[a.id] < counts_[b.id]; });
  candidate->shared = static_cast<int>(most - candidate->blocks.begin());
  return most->id;
}

// Neighbours have as many blocks in common as can be.
void SharedPlan::add_groups(const std::vector<SequencePlan>& sequences,
                            const std::vector<const Candidate*>& sharing, int max_tokens) {
  std::vector<std::pair<std::vector<int32_t>, const Candidate*>> order;
  for (const Candidate* each : sharing) {
    std::vector<int32_t> ids;
    for (const Block& block : each->blocks) ids.push_back(block.id);
    std::rotate(ids.begin(), ids.begin() + each->shared, ids.end());
    order.emplace_back(std::move(ids), each);
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<const Candidate*> together;
  int num_tokens = 0;
  for (const auto& [ids, each] : order) {
    const int own = sequences[each->part.sequence].num_tokens();
    if (num_tokens + own > max_tokens) {
      add_group(sequences, together);
      together.clear();
      num_tokens = 0;
    }
    together.push_back(each);
    num_tokens += own;
  }
  add_group(sequences, together);
}

void SharedPlan::add_group(const std::vector<SequencePlan>& sequences,
                           const std::vector<const Candidate*>& together) {
  groups_.emplace_back();
  Group& group = groups_.back();
  std::vector<int> first_rows = {0};
  for (const Candidate* each : together) {
    const SequencePlan& sequence = sequences[each->part.sequence];
    group.parts.push_back(each->part);
    group.members.push_back({sequence.part(each->part.number).turns, nullptr, 0,
                             sequence.first_token(), sequence.num_tokens()});
    first_rows.push_back(first_rows.back() + sequence.num_tokens() * num_query_heads_);
  }
  group.num_rows = first_rows.back();
  add_visits(together, first_rows, &group);
}

// Block by block; one visit for neighbours that have the same.
void SharedPlan::add_visits(const std::vector<const Candidate*>& together,
                            const std::vector<int>& first_rows, Group* group) const {
  size_t most_blocks = 0;
  for (const Candidate* each : together) most_blocks = std::max(most_blocks, each->blocks.size());
  for (size_t place = 0; place < most_blocks; ++place) {
    const auto id_of = [&](size_t member) {
      const std::vector<Block>& blocks = together[member]->blocks;
      return place < blocks.size() ? blocks[place].id : -1;
    };
    for (size_t first = 0, end = 0; first < together.size(); first = end) {
      const int32_t id = id_of(first);
      while (end < together.size() && id_of(end) == id) ++end;
      if (id < 0) continue;
      const Block& block = kinds_[id];
      group->visits.push_back({runs_.data() + block.first_run, block.num_runs, first_rows[first],
                               first_rows[end] - first_rows[first]});
    }
  }
}

}  // namespace legokv::cpu
