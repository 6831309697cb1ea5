// Rows that stay while blocks of keys pass by: their turned queries, and what they have seen.
#pragma once

#include "cpu/kernels/rotate.h"
#include "cpu/kernels/scratch.h"
#include "cpu/kernels/tile_product.h"

namespace legokv::cpu {
namespace {

template <typename Operand, typename T>
class TileRows {
 public:
  TileRows(const Shape& shape, const LegokvCpuLayer& layer, int kv_head, int num_rows, void* memory)
      : shape(shape),
        layer(layer),
        kv_head(kv_head),
        heads(shape.num_heads / shape.num_kv_heads),
        count(num_rows),
        row_words_(head_words<Operand>(shape.head_size)),
        scale_{shape.exponent_scale, kSlack / shape.exponent_scale} {
    carve(shape, memory, &scratch);
    memset(scratch.zeros, 0, sizeof(T) * shape.head_size);
    if (row_words_ * Operand::kPerWord > shape.head_size) {
      memset(scratch.queries, 0, sizeof(uint32_t) * count * row_words_);
    }
  }

  // As if no key had been seen.
  void forget() { clear(shape, count, scratch); }

  // The KV head's first key in the pool.
  const T* pool_head() const {
    return static_cast<const T*>(layer.pool) + kv_head * shape.head_size;
  }

  // The queries of a token of the step, by its turn, as rows from `first_row` on.
  void turn_token(int first_row, int token, const float* turn) {
    const int head_size = shape.head_size;
    const T* queries =
        static_cast<const T*>(layer.q) + token * layer.q_stride + kv_head * heads * head_size;
    for (int h = 0; h < heads; ++h) {
      rotate_head(queries + h * head_size, turn, head_size,
                  scratch.queries + (first_row + h) * row_words_ * Operand::kPerWord);
    }
  }

  // Rows `first_row` to `end_row`, by position, each of which sees a key of the block.
  void attend_block(const KeyBlock<T>& block, const KeyBlock<T>& next, int first_row, int end_row) {
    constexpr int kRows = Operand::kRows;
    pack_keys<Operand>(block, shape.head_size, scratch.keys);
    pack_values<Operand>(block, shape.head_size, scratch.values);
    const int num_panels = (end_row - first_row + kRows - 1) / kRows;
    const int keys_a_panel = (kBlockKeys + num_panels - 1) / num_panels;
    for (int panel = 0; panel < num_panels; ++panel) {
      prefetch(next, panel * keys_a_panel, (panel + 1) * keys_a_panel, shape.head_size);
      const int row = first_row + panel * kRows;
      attend_panel(block, row, end_row - row < kRows ? end_row - row : kRows);
    }
  }

  // The rows' scores of the block's keys, packed before, that the last of them sees; how many, in
  // whole columns.
  int score_rows(const KeyBlock<T>& block, int first_row, int num_rows) {
    // The last row sees the most; nothing is computed for keys that only later ones see.
    const int num_keys = block.num_seen(scratch.positions[first_row + num_rows - 1]);
    const int num_columns = rounded_up(num_keys, Operand::kKeys);
    const auto* queries = reinterpret_cast<const uint32_t*>(scratch.queries);
    multiply_as<Operand>(
        num_rows, num_columns,
        {queries + first_row * row_words_, row_words_, scratch.keys, row_words_, row_words_},
        {scratch.scores, kBlockKeys, false});
    return num_columns;
  }

  void hide_from(const KeyBlock<T>& block, int row, int panel_row, int num_columns) {
    const int query_position = scratch.positions[row];
    if (block.positions[num_columns - 1] > query_position) {
      hide_scores(scratch.scores + panel_row * kBlockKeys, block.positions, query_position,
                  num_columns);
    }
  }

  float total_of(int row) const {
    return sum_of_lanes(load_vector<Floats>(scratch.totals + row * kLanes));
  }

  // Writes rows `first_row` to `end_row` over a part, as join_parts reads them.
  void leave(int first_row, int end_row, float* left) const {
    const int head_size = shape.head_size;
    for (int row = first_row; row < end_row; ++row, left += head_size + kPartTail) {
      memcpy(left, scratch.sums + row * head_size, sizeof(float) * head_size);
      left[head_size] = total_of(row);
      left[head_size + 1] = scratch.maxima[row];
    }
  }

  const Shape& shape;
  const LegokvCpuLayer& layer;
  const int kv_head;
  const int heads;  // query heads of the KV head
  const int count;
  Scratch<Operand, T> scratch;

 private:
  void attend_panel(const KeyBlock<T>& block, int first_row, int num_rows) {
    constexpr int kPerWord = Operand::kPerWord;
    const int num_columns = score_rows(block, first_row, num_rows);
    const int num_keys = block.num_seen(scratch.positions[first_row + num_rows - 1]);
    const int depth = rounded_up((num_keys + kPerWord - 1) / kPerWord, Operand::kWords);
    for (int row = 0; row < num_rows; ++row) weigh_row(block, first_row + row, row, num_columns);
    add_values(first_row, num_rows, depth);
  }

  // Of `num_columns` scores; `panel_row` is the row's place in the products.
  void weigh_row(const KeyBlock<T>& block, int row, int panel_row, int num_columns) {
    hide_from(block, row, panel_row, num_columns);
    const RowState state = {scratch.maxima + row, scratch.totals + row * kLanes,
                            scratch.sums + row * shape.head_size};
    weigh(scratch.scores + panel_row * kBlockKeys, num_columns, scale_, state, shape.head_size,
          scratch.weights + panel_row * kBlockKeys);
  }

  // Products by tiles may change rows past these: those of others are kept out of their way.
  void add_values(int first_row, int num_rows, int depth) {
    constexpr int kPerWord = Operand::kPerWord;
    const int head_size = shape.head_size;
    const size_t bytes = sizeof(float) * num_rows * head_size;
    float* own = scratch.sums + first_row * head_size;
    const bool apart = num_rows % Operand::kRowsAtOnce != 0 && first_row + num_rows < count;
    float* sums = apart ? scratch.spare_sums : own;
    if (apart) memcpy(sums, own, bytes);
    multiply_as<Operand>(num_rows, head_size,
                         {reinterpret_cast<const uint32_t*>(scratch.weights), kBlockKeys / kPerWord,
                          scratch.values, depth, kBlockKeys / kPerWord},
                         {sums, head_size, true});
    if (apart) memcpy(own, sums, bytes);
  }

  const int row_words_;  // of a query
  const ScoreScale scale_;
  const SessionOf<Operand> session_{};
};

}  // namespace
}  // namespace legokv::cpu
