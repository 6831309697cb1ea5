#include "cpu/step.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <tuple>

#include "cpu/parallel.h"
#include "cpu/turn.h"
#include "legokv/dtype.h"

namespace legokv::cpu {
namespace {

// Enough that packing a block of keys costs little beside the products with it, few enough that
// a step gives work to several threads.
constexpr int kLeastTileRows = 192;
constexpr int kMostTileRows = 512;
// A sequence without tiles enough for all threads has its keys handed out, about so many to a tile:
// in a step of one token each, a thread then has several even pieces of work.
constexpr int kShareKeys = 512;
constexpr int kTilesForAThread = 4;
constexpr float kLog2OfE = 1.44269504f;

// Of a tile at most: few tiles that are long, as many as the threads share evenly.
int tile_tokens(const LegokvCpuStep& step) {
  const int heads = step.num_heads / step.num_kv_heads;
  const int num_tiles = step.num_threads > 1 ? kTilesForAThread * step.num_threads : 1;
  const int tiles_a_head = (num_tiles + step.num_kv_heads - 1) / step.num_kv_heads;
  const int least = std::max(1, kLeastTileRows / heads), most = std::max(1, kMostTileRows / heads);
  // Masses are added tile by tile: to the same bits in any company, on any number of threads.
  if (step.scoring != nullptr) return least;
  return std::clamp(step.query_start[step.num_sequences] / tiles_a_head, least, most);
}

// Bringing keys costs what so many tokens more would, about.
constexpr int kTokensToBring = 4;

int64_t keys_of(const KeyRun* runs, int num_runs) {
  int64_t num_keys = 0;
  for (const KeyRun* run = runs; run != runs + num_runs; ++run) num_keys += run->num_keys;
  return num_keys;
}

// Runs that some of its tokens see, counted whole.
int64_t keys_of(const Tile& tile) {
  const int last_position = tile.positions[tile.num_tokens - 1];
  int64_t num_keys = 0;
  for (const KeyGroup* group = tile.groups; group != tile.groups + tile.num_groups; ++group) {
    for (const KeyRun* run = group->runs; run != group->runs + group->num_runs; ++run) {
      if (run->first_position <= last_position) num_keys += run->num_keys;
    }
  }
  return num_keys;
}

int64_t cost_of(const Tile& tile) { return keys_of(tile) * (tile.num_tokens + kTokensToBring); }

int64_t cost_of(const SharedTile& tile, int rows_a_token) {
  int64_t cost = 0;
  for (const Visit* visit = tile.visits; visit != tile.visits + tile.num_visits; ++visit) {
    cost +=
        keys_of(visit->runs, visit->num_runs) * (visit->num_rows / rows_a_token + kTokensToBring);
  }
  return cost;
}

Shape shape_of(const LegokvCpuStep& step) {
  const PoolLayout layout = {step.page_size, step.num_kv_heads, step.head_size};
  const int max_rows = tile_tokens(step) * (step.num_heads / step.num_kv_heads);
  return {step.num_heads,       step.num_kv_heads,      step.head_size,       max_rows,
          token_stride(layout), value_distance(layout), step.scale * kLog2OfE};
}

}  // namespace

Step::Step(const LegokvCpuStep& step, const Choice& choice)
    : choice_(choice),
      begun_(step),
      inv_freq_(step.inv_freq, step.inv_freq + step.head_size / 2),
      num_threads_(step.num_threads),
      num_tokens_(step.num_tokens),
      num_attending_(step.query_start[step.num_sequences]),
      element_bytes_(step.dtype == LEGOKV_FLOAT32 ? 4 : 2),
      shape_(shape_of(step)),
      num_places_(int64_t{step.num_table_rows} * step.page_size) {
  plan_writes(step);
  plan_tiles(step);
  if (step.scoring != nullptr) plan_scoring(step);
  scratch_bytes_ = choice.kernels->scratch_bytes(shape_);
  scratch_ = uninitialised<char>(scratch_bytes_ * num_threads_);
}

bool Step::advance(const LegokvCpuStep& step, const Choice& choice) {
  if (!is_like(step, choice)) return false;
  for (int b = 0; b < step.num_sequences; ++b) {
    if (!sequences_[b].advance(step, b)) return false;
  }
  writes_.clear();
  plan_writes(step);
  return true;
}

// All that a step's plan depends on but positions, slots and page tables.
bool Step::is_like(const LegokvCpuStep& step, const Choice& choice) const {
  const auto sizes = [](const LegokvCpuStep& s) {
    return std::make_tuple(s.num_tokens, s.num_sequences, s.num_heads, s.num_kv_heads, s.head_size,
                           s.page_size, s.num_threads, s.scale);
  };
  if (choice.kernels != choice_.kernels || sizes(step) != sizes(begun_)) return false;
  if (step.scoring != nullptr || begun_.scoring != nullptr) return false;
  // One token each: where they begin is then known.
  if (num_attending_ != step.num_sequences) return false;
  for (int b = 0; b <= step.num_sequences; ++b) {
    if (step.query_start[b] != b) return false;
  }
  return std::equal(inv_freq_.begin(), inv_freq_.end(), step.inv_freq);
}

void Step::plan_writes(const LegokvCpuStep& step) {
  const PoolLayout layout = {step.page_size, step.num_kv_heads, step.head_size};
  const int64_t num_slots = step.num_pool_pages * step.page_size;
  key_turns_ = uninitialised<float>(int64_t{step.num_tokens} * step.head_size);
  for (int t = 0; t < step.num_tokens; ++t) {
    if (step.slots[t] < 0 || step.slots[t] >= num_slots) continue;
    const SlotPlace place = slot_place(layout, step.slots[t]);
    float* turn = key_turns_.get() + static_cast<int64_t>(writes_.size()) * step.head_size;
    write_turn(step.key_positions[t], step.inv_freq, step.head_size / 2, turn);
    writes_.push_back({t, key_offset(layout, place.page, place.slot, 0)});
  }
}

void Step::plan_tiles(const LegokvCpuStep& step) {
  sequences_.reserve(step.num_sequences);
  for (int b = 0; b < step.num_sequences; ++b) sequences_.emplace_back(step, b);
  const int max_tokens = tile_tokens(step);
  // Masses are added up in the places of one sequence's table.
  if (step.num_sequences > 1 && step.scoring == nullptr) {
    shared_.emplace(&sequences_, max_tokens, shape_.num_heads / shape_.num_kv_heads,
                    shape_.token_stride);
  }
  for (const SequencePlan& sequence : sequences_) add_sequence(sequence, max_tokens);
  place_parts();
  if (shared_) add_shared_tiles();
  order_tiles();
}

void Step::add_sequence(const SequencePlan& sequence, int max_tokens) {
  const int num_whole = sequence.num_token_tiles(max_tokens) * shape_.num_kv_heads;
  int num_shares = 1;
  if (num_threads_ > 1 && num_whole < kTilesForAThread * num_threads_) {
    const int64_t wanted =
        std::min<int64_t>(sequence.num_own_keys() / kShareKeys, sequence.num_own_parts());
    num_shares = static_cast<int>(std::max<int64_t>(1, wanted));
  }
  const bool gives = sequence.num_own_parts() < sequence.num_parts();
  if (gives && sequence.num_own_parts() == 0) num_shares = 0;
  num_shares_.push_back(num_shares);
  const size_t first = tiles_.size();
  sequence.add_tiles(max_tokens, shape_.num_kv_heads, num_shares, &tiles_);
  first_joins_.push_back(joins_.size());
  if (num_shares > 1 || gives) add_joins(sequence, max_tokens, first, num_shares);
}

void Step::add_joins(const SequencePlan& sequence, int max_tokens, size_t first_tile,
                     int num_shares) {
  std::vector<Tile> rows;
  sequence.add_tiles(max_tokens, shape_.num_kv_heads, 1, &rows);
  for (const Tile& each : rows) {
    joins_.push_back({each, first_tile, num_shares, sequence.num_parts()});
    first_tile += num_shares;
  }
}

void Step::place_parts() {
  const int part_floats = shape_.num_heads / shape_.num_kv_heads * (shape_.head_size + kPartTail);
  int64_t num_floats = 0;
  for (const Join& join : joins_) {
    num_floats += int64_t{join.num_parts} * join.rows.num_tokens * part_floats;
  }
  parts_ = uninitialised<float>(num_floats);
  float* parts = parts_.get();
  for (Join& join : joins_) {
    join.rows.parts = parts;
    for (int i = 0; i < join.num_tiles; ++i) tiles_[join.first_tile + i].parts = parts;
    parts += int64_t{join.num_parts} * join.rows.num_tokens * part_floats;
  }
}

void Step::add_shared_tiles() {
  const int row_floats = shape_.head_size + kPartTail;
  const int heads = shape_.num_heads / shape_.num_kv_heads;
  for (SharedPlan::Group& group : shared_->groups()) {
    for (size_t m = 0; m < group.members.size(); ++m) {
      const Join& join = joins_[first_joins_[group.parts[m].sequence]];
      const int64_t part_floats = int64_t{join.rows.num_tokens} * heads * row_floats;
      group.members[m].left = join.rows.parts + group.parts[m].number * part_floats;
      group.members[m].head_floats = join.num_parts * part_floats;
    }
    for (int head = 0; head < shape_.num_kv_heads; ++head) {
      shared_tiles_.push_back({group.members.data(), group.visits.data(),
                               static_cast<int32_t>(group.members.size()),
                               static_cast<int32_t>(group.visits.size()), group.num_rows, head});
    }
  }
}

void Step::plan_scoring(const LegokvCpuStep& step) {
  const int heads = shape_.num_heads / shape_.num_kv_heads;
  num_scoring_.assign(step.scoring, step.scoring + step.num_sequences);
  size_t tile = 0;
  for (int b = 0; b < step.num_sequences; ++b) {
    const int num_tiles =
        sequences_[b].num_token_tiles(tile_tokens(step)) * shape_.num_kv_heads * num_shares_[b];
    const int first_scoring = sequences_[b].num_tokens() - num_scoring_[b];
    for (const size_t end = tile + num_tiles; tile != end; tile += num_shares_[b]) {
      const int before = std::max(0, first_scoring - tiles_[tile].first_in_sequence);
      if (before >= tiles_[tile].num_tokens) continue;
      scoring_.push_back({tile, num_shares_[b], b});
      for (int share = 0; share < num_shares_[b]; ++share) {
        tiles_[tile + share].first_scoring = before * heads;
        scoring_tiles_.push_back(tile + share);
      }
    }
  }
  place_scores();
}

void Step::place_scores() {
  const int stat_floats = shape_.num_heads / shape_.num_kv_heads * kStatFloats;
  int64_t num_floats = 0;
  for (const Scoring& each : scoring_) num_floats += tiles_[each.first_tile].num_tokens;
  stats_ = uninitialised<float>(num_floats * stat_floats);
  masses_ = uninitialised<float>(static_cast<int64_t>(scoring_.size()) * num_places_);
  float *stats = stats_.get(), *mass = masses_.get();
  for (const Scoring& each : scoring_) {
    for (int share = 0; share < each.num_shares; ++share) {
      tiles_[each.first_tile + share].stats = stats;
      tiles_[each.first_tile + share].mass = mass;
    }
    stats += int64_t{tiles_[each.first_tile].num_tokens} * stat_floats;
    mass += num_places_;
  }
  for (Join& join : joins_) join.rows.stats = tiles_[join.first_tile].stats;
}

// The longest first, so that no thread is left alone with one at the end.
void Step::order_tiles() {
  const int heads = shape_.num_heads / shape_.num_kv_heads;
  std::vector<int64_t> costs;
  for (const Tile& tile : tiles_) costs.push_back(cost_of(tile));
  for (const SharedTile& tile : shared_tiles_) costs.push_back(cost_of(tile, heads));
  order_.resize(costs.size());
  std::iota(order_.begin(), order_.end(), size_t{0});
  std::stable_sort(order_.begin(), order_.end(),
                   [&costs](size_t a, size_t b) { return costs[a] > costs[b]; });
}

int64_t Step::num_keys_read() const {
  int64_t num_keys = 0;
  for (const Tile& tile : tiles_) num_keys += tile.kv_head == 0 ? keys_of(tile) : 0;
  for (const SharedTile& tile : shared_tiles_) {
    if (tile.kv_head != 0) continue;
    for (const Visit* visit = tile.visits; visit != tile.visits + tile.num_visits; ++visit) {
      num_keys += keys_of(visit->runs, visit->num_runs);
    }
  }
  return num_keys;
}

void Step::attend(const LegokvCpuLayer& layer) {
  const Kernels& kernels = *choice_.kernels;
  parallel_for(static_cast<int64_t>(writes_.size()), num_threads_, [&](int64_t i, int) {
    kernels.write_token(shape_, layer, writes_[i].token, key_turns_.get() + i * shape_.head_size,
                        writes_[i].key_offset);
  });
  parallel_for(static_cast<int64_t>(order_.size()), num_threads_, [&](int64_t i, int thread) {
    char* scratch = scratch_.get() + thread * scratch_bytes_;
    if (order_[i] < tiles_.size()) {
      kernels.attend_tile(shape_, layer, tiles_[order_[i]], scratch);
    } else {
      kernels.attend_shared(shape_, layer, shared_tiles_[order_[i] - tiles_.size()], scratch);
    }
  });
  parallel_for(static_cast<int64_t>(joins_.size()), num_threads_, [&](int64_t i, int) {
    kernels.join_parts(shape_, layer, joins_[i].rows, joins_[i].num_parts);
  });
  clear_unattended(layer.out);
  if (layer.mass != nullptr) score(layer);
}

// The shares of a tile have keys of their own, so they never add to one mass at once. The tiles of
// a sequence are added in their order, whatever threads there are.
void Step::score(const LegokvCpuLayer& layer) {
  const size_t sequence_bytes = sizeof(float) * static_cast<size_t>(num_places_);
  std::memset(masses_.get(), 0, scoring_.size() * sequence_bytes);
  std::memset(layer.mass, 0, sequences_.size() * sequence_bytes);
  parallel_for(static_cast<int64_t>(scoring_tiles_.size()), num_threads_,
               [&](int64_t i, int thread) {
                 choice_.kernels->add_mass(shape_, layer, tiles_[scoring_tiles_[i]],
                                           scratch_.get() + thread * scratch_bytes_);
               });
  for (size_t i = 0; i < scoring_.size(); ++i) {
    const float* from = masses_.get() + static_cast<int64_t>(i) * num_places_;
    float* to = layer.mass + scoring_[i].sequence * num_places_;
    for (int64_t place = 0; place < num_places_; ++place) to[place] += from[place];
  }
}

void Step::clear_unattended(void* out) const {
  const int64_t token_bytes = int64_t{shape_.num_heads} * shape_.head_size * element_bytes_;
  std::memset(static_cast<char*>(out) + num_attending_ * token_bytes, 0,
              static_cast<size_t>((num_tokens_ - num_attending_) * token_bytes));
}

}  // namespace legokv::cpu
