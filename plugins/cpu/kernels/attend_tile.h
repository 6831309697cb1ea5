// Attention of one tile: rows stay, blocks of keys pass by, stored keys are read as they are.
#pragma once

#include "cpu/kernels/join_parts.h"
#include "cpu/kernels/rotate.h"
#include "cpu/kernels/scratch.h"
#include "cpu/kernels/tile_product.h"

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
        row_words_(head_words<Operand>(shape.head_size)),
        scale_{shape.exponent_scale, kSlack / shape.exponent_scale} {
    carve(shape, memory, &scratch_);
    memset(scratch_.zeros, 0, sizeof(T) * shape.head_size);
    if (row_words_ * Operand::kPerWord > shape.head_size) {
      memset(scratch_.queries, 0, sizeof(uint32_t) * num_rows_ * row_words_);
    }
    for (int row = 0; row < num_rows_; ++row) {
      scratch_.positions[row] = tile.positions[row / heads_];
    }
  }

  void run() {
    for (int g = 0; g < tile_.num_groups; ++g) {
      const int first_row = attend_part(tile_.groups[g]);
      tile_.parts == nullptr ? join_part(g, first_row) : leave_part(g);
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
  using Visit = void (TileAttention::*)(const KeyBlock<T>& block, const KeyBlock<T>& next);

  // The first token at or past a position: it and those after it see a key there.
  int first_token_at(int position) const {
    int token = 0;
    while (token < tile_.num_tokens && tile_.positions[token] < position) ++token;
    return token;
  }

  // The rows' sums over the part's keys; the first row that sees one.
  int attend_part(const KeyGroup& group) {
    clear(shape_, num_rows_, scratch_);
    return walk(group, &TileAttention::attend_block);
  }

  // Calls `visit` for each block of the group's keys; the first row that sees one.
  int walk(const KeyGroup& group, Visit visit) {
    const int first_token = first_token_at(group.first_position);
    if (first_token == tile_.num_tokens) return num_rows_;
    if (group.turns != turns_) turn_queries(group, first_token);
    const T* pool_head = static_cast<const T*>(layer_.pool) + tile_.kv_head * shape_.head_size;
    const int last_position = tile_.positions[tile_.num_tokens - 1];
    RunCursor cursor = {group.runs, group.runs + group.num_runs, 0};
    KeyBlock<T>* blocks = scratch_.blocks;
    take_block(&cursor, shape_, pool_head, last_position, scratch_.zeros, &blocks[0]);
    for (int i = 0; blocks[i % 2].num_keys > 0; ++i) {
      KeyBlock<T>& next = blocks[(i + 1) % 2];
      take_block(&cursor, shape_, pool_head, last_position, scratch_.zeros, &next);
      (this->*visit)(blocks[i % 2], next);
    }
    return first_token * heads_;
  }

  // A later part of the base is seen by some of these tokens, no others.
  void turn_queries(const KeyGroup& group, int first_token) {
    turns_ = group.turns;
    const int head_size = shape_.head_size;
    for (int token = first_token; token < tile_.num_tokens; ++token) {
      const float* turn = group.turns + int64_t{tile_.first_in_sequence + token} * head_size;
      const T* heads = static_cast<const T*>(layer_.q) +
                       (tile_.first_token + token) * layer_.q_stride +
                       tile_.kv_head * heads_ * head_size;
      for (int h = 0; h < heads_; ++h) {
        rotate_head(heads + h * head_size, turn, head_size,
                    scratch_.queries + (token * heads_ + h) * row_words_ * Operand::kPerWord);
      }
    }
  }

  void attend_block(const KeyBlock<T>& block, const KeyBlock<T>& next) {
    constexpr int kRows = Operand::kRows;
    pack_keys<Operand>(block, shape_.head_size, scratch_.keys);
    pack_values<Operand>(block, shape_.head_size, scratch_.values);
    const int first_row = first_token_at(block.positions[0]) * heads_;
    const int num_panels = (num_rows_ - first_row + kRows - 1) / kRows;
    const int keys_a_panel = (kBlockKeys + num_panels - 1) / num_panels;
    for (int panel = 0; panel < num_panels; ++panel) {
      prefetch(next, panel * keys_a_panel, (panel + 1) * keys_a_panel, shape_.head_size);
      const int row = first_row + panel * kRows;
      attend_rows(block, row, num_rows_ - row < kRows ? num_rows_ - row : kRows);
    }
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
      const int num_columns = score_rows(block, row, num_rows);
      for (int r = 0; r < num_rows; ++r) {
        hide_from(block, row + r, r, num_columns);
        const float* stats = tile_.stats + (row + r) * kStatFloats;
        add_weights<typename Operand::Number>(scratch_.scores + r * kBlockKeys, num_columns,
                                              shape_.exponent_scale, stats[0], stats[1], mass);
      }
    }
    for (int key = 0; key < block.num_keys; ++key) tile_.mass[block.places[key]] += mass[key];
  }

  // The rows' scores of the block's keys that the last of them sees; how many, in whole columns.
  int score_rows(const KeyBlock<T>& block, int first_row, int num_rows) {
    // The last row sees the most; nothing is computed for keys that only later ones see.
    const int num_keys = block.num_seen(scratch_.positions[first_row + num_rows - 1]);
    const int num_columns = rounded_up(num_keys, Operand::kKeys);
    const auto* queries = reinterpret_cast<const uint32_t*>(scratch_.queries);
    multiply_as<Operand>(
        num_rows, num_columns,
        {queries + first_row * row_words_, row_words_, scratch_.keys, row_words_, row_words_},
        {scratch_.scores, kBlockKeys, false});
    return num_columns;
  }

  void attend_rows(const KeyBlock<T>& block, int first_row, int num_rows) {
    constexpr int kPerWord = Operand::kPerWord;
    const int head_size = shape_.head_size;
    const int num_columns = score_rows(block, first_row, num_rows);
    const int num_keys = block.num_seen(scratch_.positions[first_row + num_rows - 1]);
    const int depth = rounded_up((num_keys + kPerWord - 1) / kPerWord, Operand::kWords);
    for (int row = 0; row < num_rows; ++row) weigh_row(block, first_row + row, row, num_columns);
    multiply_as<Operand>(num_rows, head_size,
                         {reinterpret_cast<const uint32_t*>(scratch_.weights),
                          kBlockKeys / kPerWord, scratch_.values, depth, kBlockKeys / kPerWord},
                         {scratch_.sums + first_row * head_size, head_size, true});
  }

  // Of `count` scores; `panel_row` is the row's place in the products.
  void weigh_row(const KeyBlock<T>& block, int row, int panel_row, int count) {
    float* scores = scratch_.scores + panel_row * kBlockKeys;
    hide_from(block, row, panel_row, count);
    const RowState state = {scratch_.maxima + row, scratch_.totals + row * kLanes,
                            scratch_.sums + row * shape_.head_size};
    weigh(scores, count, scale_, state, shape_.head_size,
          scratch_.weights + panel_row * kBlockKeys);
  }

  void hide_from(const KeyBlock<T>& block, int row, int panel_row, int count) {
    const int query_position = scratch_.positions[row];
    if (block.positions[count - 1] > query_position) {
      hide_scores(scratch_.scores + panel_row * kBlockKeys, block.positions, query_position, count);
    }
  }

  float total_of(int row) const {
    return sum_of_lanes(load_vector<Floats>(scratch_.totals + row * kLanes));
  }

  RowPart joined_row(int row) const {
    return {scratch_.joined_sums + row * shape_.head_size, scratch_.joined_totals + row,
            scratch_.joined_maxima + row};
  }

  void join_part(int part, int first_row) {
    if (part == 0) return begin_joining();
    for (int row = first_row; row < num_rows_; ++row) {
      float total = total_of(row);
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
      scratch_.joined_totals[row] = total_of(row);
      scratch_.joined_maxima[row] = scratch_.maxima[row];
    }
  }

  void finish() {
    // No key in sight: as for a part of none.
    if (tile_.num_groups == 0) {
      clear(shape_, num_rows_, scratch_);
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
    const int head_size = shape_.head_size, row_floats = head_size + kPartTail;
    float* left = tile_.parts + int64_t{part} * num_rows_ * row_floats;
    for (int row = 0; row < num_rows_; ++row, left += row_floats) {
      memcpy(left, scratch_.sums + row * head_size, sizeof(float) * head_size);
      left[head_size] = total_of(row);
      left[head_size + 1] = scratch_.maxima[row];
    }
  }

  const Shape& shape_;
  const LegokvCpuLayer& layer_;
  const Tile& tile_;
  const int heads_;  // query heads of the KV head
  const int num_rows_;
  const int row_words_;  // of a query
  const ScoreScale scale_;
  const SessionOf<Operand> session_{};
  const float* turns_ = nullptr;  // of the queries as they are turned now
  Scratch<Operand, T> scratch_;
};

}  // namespace
}  // namespace legokv::cpu
