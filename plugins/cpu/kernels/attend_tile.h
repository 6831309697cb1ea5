// Attention of one tile: rows stay, blocks of keys pass by, stored keys are read as they are.
#pragma once

#include "cpu/kernels/join_parts.h"
#include "cpu/kernels/tile_rows.h"

namespace legokv::cpu {
namespace {

template <typename Operand, typename T>
class TileAttention {
 public:
  TileAttention(const Shape& shape, const LegokvCpuLayer& layer, const Tile& tile, void* memory)
      : shape_(shape),
        layer_(layer),
        tile_(tile),
        heads_(shape.num_heads / shape.num_kv_heads),
        num_rows_(tile.num_tokens * heads_),
        rows_(shape, layer, tile.kv_head, num_rows_, memory),
        scratch_(rows_.scratch) {
    for (int row = 0; row < num_rows_; ++row) {
      scratch_.positions[row] = tile.positions[row / heads_];
    }
  }

  void run() {
    for (int g = 0; g < tile_.num_groups; ++g) {
      const int first_row = attend_part(tile_.groups[g]);
      tile_.parts == nullptr ? join_part(g, first_row) : leave_part(tile_.groups[g].part);
    }
    if (tile_.parts == nullptr) finish();
  }

  // What the rows weigh each key, once they have seen all: the same products as for the attention.
  void add_mass() {
    for (int g = 0; g < tile_.num_groups; ++g) {
      walk(tile_.groups[g], &TileAttention::weigh_block);
    }
  }

 private:
  using Visitor = void (TileAttention::*)(const KeyBlock<T>& block, const KeyBlock<T>& next);

  // The first token at or past a position: it and those after it see a key there.
  int first_token_at(int position) const {
    int token = 0;
    while (token < tile_.num_tokens && tile_.positions[token] < position) ++token;
    return token;
  }

  // The rows' sums over the part's keys; the first row that sees one.
  int attend_part(const KeyGroup& group) {
    rows_.forget();
    return walk(group, &TileAttention::attend_block);
  }

  // Calls `visitor` for each block of the group's keys; the first row that sees one.
  int walk(const KeyGroup& group, Visitor visitor) {
    const int first_token = first_token_at(group.first_position);
    if (first_token == tile_.num_tokens) return num_rows_;
    if (group.turns != turns_) turn_queries(group, first_token);
    const T* pool_head = rows_.pool_head();
    const int last_position = tile_.positions[tile_.num_tokens - 1];
    RunCursor cursor = {group.runs, group.runs + group.num_runs, 0, group.first_block};
    KeyBlock<T>* blocks = scratch_.blocks;
    take_block(&cursor, shape_, pool_head, last_position, scratch_.zeros, &blocks[0]);
    for (int i = 0; blocks[i % 2].num_keys > 0; ++i) {
      KeyBlock<T>& next = blocks[(i + 1) % 2];
      take_block(&cursor, shape_, pool_head, last_position, scratch_.zeros, &next);
      (this->*visitor)(blocks[i % 2], next);
    }
    return first_token * heads_;
  }

  // A later part of the base is seen by some of these tokens, no others.
  void turn_queries(const KeyGroup& group, int first_token) {
    turns_ = group.turns;
    for (int token = first_token; token < tile_.num_tokens; ++token) {
      const int64_t in_sequence = tile_.first_in_sequence + token;
      rows_.turn_token(token * heads_, tile_.first_token + token,
                       group.turns + in_sequence * shape_.head_size);
    }
  }

  void attend_block(const KeyBlock<T>& block, const KeyBlock<T>& next) {
    rows_.attend_block(block, next, first_token_at(block.positions[0]) * heads_, num_rows_);
  }

  void weigh_block(const KeyBlock<T>& block, const KeyBlock<T>& next) {
    constexpr int kRows = Operand::kRows;
    const int first_seeing = first_token_at(block.positions[0]) * heads_;
    const int first_row = first_seeing > tile_.first_scoring ? first_seeing : tile_.first_scoring;
    prefetch(next, 0, kBlockKeys, shape_.head_size);
    if (first_row >= num_rows_) return;
    pack_keys<Operand>(block, shape_.head_size, scratch_.keys);
    alignas(64) float mass[kBlockKeys] = {};
    for (int row = first_row; row < num_rows_; row += kRows) {
      const int num_rows = num_rows_ - row < kRows ? num_rows_ - row : kRows;
      const int num_columns = rows_.score_rows(block, row, num_rows);
      for (int r = 0; r < num_rows; ++r) {
        float* scores = scratch_.scores + r * kBlockKeys;
        rows_.hide_from(block, row + r, scores, num_columns);
        const float* stats = tile_.stats + (row + r) * kStatFloats;
        add_weights<typename Operand::Number>(scores, num_columns, shape_.exponent_scale, stats[0],
                                              stats[1], mass);
      }
    }
    for (int key = 0; key < block.num_keys; ++key) tile_.mass[block.places[key]] += mass[key];
  }

  RowPart joined_row(int row) const {
    return {scratch_.joined_sums + row * shape_.head_size, scratch_.joined_totals + row,
            scratch_.joined_maxima + row};
  }

  void join_part(int part, int first_row) {
    if (part == 0) return begin_joining();
    for (int row = first_row; row < num_rows_; ++row) {
      float total = rows_.total_of(row);
      add_part(joined_row(row),
               {scratch_.sums + row * shape_.head_size, &total, scratch_.maxima + row},
               shape_.exponent_scale, shape_.head_size);
    }
  }

  // With the first part's sums where they are.
  void begin_joining() {
    float* sums = scratch_.sums;
    scratch_.sums = scratch_.joined_sums;
    scratch_.joined_sums = sums;
    for (int row = 0; row < num_rows_; ++row) {
      scratch_.joined_totals[row] = rows_.total_of(row);
      scratch_.joined_maxima[row] = scratch_.maxima[row];
    }
  }

  void finish() {
    // No key in sight: as for a part of none.
    if (tile_.num_groups == 0) {
      rows_.forget();
      begin_joining();
    }
    for (int row = 0; row < num_rows_; ++row) {
      const RowPart joined = joined_row(row);
      store_mean(joined.sums, *joined.total, shape_.head_size,
                 output_row<T>(shape_, layer_, tile_, row));
      leave_stats(joined, tile_, row);
    }
  }

  void leave_part(int part) const {
    const int64_t part_floats = int64_t{num_rows_} * (shape_.head_size + kPartTail);
    rows_.leave(0, num_rows_, tile_.parts + part * part_floats);
  }

  const Shape& shape_;
  const LegokvCpuLayer& layer_;
  const Tile& tile_;
  const int heads_;  // query heads of the KV head
  const int num_rows_;
  TileRows<Operand, T> rows_;
  Scratch<Operand, T>& scratch_;
  const float* turns_ = nullptr;  // of the queries as they are turned now
};

}  // namespace
}  // namespace legokv::cpu
