// The tokens of a bracket: marked in their blocks, a bit each, then listed with their values.
#pragma once

#include "cpu/kernels/likeliest.h"
#include "cpu/kernels/list_edge.h"

namespace legokv::cpu {
namespace {

template <typename Raw>
class MarkedTokens {
 public:
  MarkedTokens(const RowBlocks<Raw>& blocks, Parts& parts)
      : marks(parts.take<BlockBits>(blocks.num_blocks)),
        list(token_list(parts, int64_t{blocks.num_blocks} * kDrawBlock)),
        blocks_(blocks) {}

  struct Counts {
    int64_t above = 0;
    int64_t within = 0;
  };

  // Marks the live tokens in the bracket, and counts them, changed ones and those above it.
  Counts mark(Bracket bracket) {
    const float high = least_float(bracket.high), low = least_float(bracket.low);
    Counts counts;
    for (int block = 0; block < blocks_.num_blocks; ++block) {
      marks[block] = 0;
      if (blocks_.peaks[block] < bracket.low) continue;
      const Raw* values = blocks_.at(block);
      const BlockBits above = blocks_.live[block] & block_at_least(values, high);
      marks[block] = blocks_.live[block] & block_at_least(values, low) & ~above;
      counts.above += __builtin_popcountll(above);
      counts.within += __builtin_popcountll(marks[block]);
    }
    const TokenList changed = blocks_.changed;
    for (int64_t i = 0; i < changed.size; ++i) {
      counts.above += changed.values[i] >= bracket.high;
      counts.within += (changed.values[i] >= bracket.low) & (changed.values[i] < bracket.high);
    }
    return counts;
  }

  // Lists what is marked, and the changed tokens in the bracket that are kept.
  void list_all(Bracket bracket, const Edge& edge) {
    // Copies: else each store might change them, for all that the compiler knows.
    TokenList listed = list;
    const BlockBits* marked = marks;
    listed.size = 0;
    for (int block = 0; block < blocks_.num_blocks; ++block) {
      const auto first = static_cast<int32_t>(blocks_.first_id(block));
      listed.size += append_numbers(marked[block], first, listed.ids + listed.size);
    }
    blocks_.values_of(listed);
    list.size = listed.size;
    list_changed(bracket, edge);
  }

  // Adds the changed tokens of the bracket that are kept.
  void list_changed(Bracket bracket, const Edge edge) {
    const TokenList changed = blocks_.changed;
    TokenList listed = list;
    for (int64_t i = 0; i < changed.size; i += kDrawLanes) {
      const Doubles values = load_doubles(changed.values + i);
      const Longs here =
          (values >= bracket.low) & (values < bracket.high) & edge.keeps(values, changed.ids + i);
      if (!any_lane(here)) continue;
      for (int lane = 0; lane < kDrawLanes; ++lane) {
        listed.ids[listed.size] = changed.ids[i + lane];
        listed.values[listed.size] = values[lane];
        listed.size -= here[lane];
      }
    }
    list.size = listed.size;
  }

  BlockBits* marks;  // of each block
  TokenList list;

 private:
  const RowBlocks<Raw>& blocks_;
};

}  // namespace
}  // namespace legokv::cpu
