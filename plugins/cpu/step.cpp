#include "cpu/step.h"

#include <algorithm>
#include <cstring>

#include "cpu/parallel.h"
#include "cpu/turn.h"
#include "legokv/dtype.h"

namespace legokv::cpu {
namespace {

// Enough that packing a block of keys costs little beside the products with it, few enough that
// their sums stay in a core's cache and a step gives work to several threads.
constexpr int kTileRows = 192;
constexpr float kLog2OfE = 1.44269504f;

int tile_tokens(const LegokvCpuStep& step) {
  return std::max(1, kTileRows / (step.num_heads / step.num_kv_heads));
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
      num_threads_(step.num_threads),
      num_tokens_(step.num_tokens),
      num_attending_(step.query_start[step.num_sequences]),
      element_bytes_(step.dtype == LEGOKV_FLOAT32 ? 4 : 2),
      shape_(shape_of(step)) {
  plan_writes(step);
  plan_tiles(step);
  scratch_bytes_ = choice.kernels->scratch_bytes(shape_);
  scratch_ = uninitialised<char>(scratch_bytes_ * num_threads_);
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
  for (int b = 0; b < step.num_sequences; ++b) sequences_.emplace_back(step, b);
  for (const SequencePlan& sequence : sequences_) {
    sequence.add_tiles(tile_tokens(step), step.num_kv_heads, &tiles_);
  }
  // The longest first, so that no thread is left alone with one at the end.
  const auto cost = [](const Tile& tile) {
    return int64_t{tile.positions[tile.num_tokens - 1]} * tile.num_tokens;
  };
  std::stable_sort(tiles_.begin(), tiles_.end(),
                   [&cost](const Tile& a, const Tile& b) { return cost(a) > cost(b); });
}

void Step::attend(const LegokvCpuLayer& layer) {
  const Kernels& kernels = *choice_.kernels;
  parallel_for(static_cast<int64_t>(writes_.size()), num_threads_, [&](int64_t i, int) {
    kernels.write_token(shape_, layer, writes_[i].token, key_turns_.get() + i * shape_.head_size,
                        writes_[i].key_offset);
  });
  parallel_for(static_cast<int64_t>(tiles_.size()), num_threads_, [&](int64_t i, int thread) {
    kernels.attend_tile(shape_, layer, tiles_[i], scratch_.get() + thread * scratch_bytes_);
  });
  clear_unattended(layer.out);
}

void Step::clear_unattended(void* out) const {
  const int64_t token_bytes = int64_t{shape_.num_heads} * shape_.head_size * element_bytes_;
  std::memset(static_cast<char*>(out) + num_attending_ * token_bytes, 0,
              static_cast<size_t>((num_tokens_ - num_attending_) * token_bytes));
}

}  // namespace legokv::cpu
