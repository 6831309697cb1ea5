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
    if constexpr (Operand::kInTurns) {
      if (end_row - first_row > kRows) return attend_in_turns(block, next, first_row, end_row);
    }
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

  // Of a row's scores, those of keys behind it.
  void hide_from(const KeyBlock<T>& block, int row, float* scores, int num_columns) {
    const int query_position = scratch.positions[row];
    if (block.positions[num_columns - 1] > query_position) {
      hide_scores(scores, block.positions, query_position, num_columns);
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
    const Panel panel = panel_of(block, 0, first_row, first_row + num_rows);
    score_rows(block, first_row, num_rows);
    weigh_rows(block, panel, 0, num_rows);
    add_values(panel);
  }

  // Rows on their way through a block: how many columns of scores and words of values count.
  struct Panel {
    int first_row, num_rows, num_columns, depth;
    float* scores;
    typename Operand::Number* weights;
  };

  // Number `number` of the panels from `first_row` on; without rows past the last.
  Panel panel_of(const KeyBlock<T>& block, int number, int first_row, int end_row) const {
    constexpr int kRows = Operand::kRows, kPerWord = Operand::kPerWord;
    const int row = first_row + number * kRows;
    const int num_rows = end_row - row < kRows ? end_row - row : kRows;
    const int num_keys = num_rows > 0 ? block.num_seen(scratch.positions[row + num_rows - 1]) : 0;
    const int at = number % 2 * kRows * kBlockKeys;
    return {row,
            num_rows,
            rounded_up(num_keys, Operand::kKeys),
            rounded_up((num_keys + kPerWord - 1) / kPerWord, Operand::kWords),
            scratch.scores + at,
            scratch.weights + at};
  }

  // Tiles are multiplied in units of their own. So the products of the next panel's scores and of
  // the values of the one before are begun by halves, and between them rows of this one weighed.
  void attend_in_turns(const KeyBlock<T>& block, const KeyBlock<T>& next, int first_row,
                       int end_row) {
    constexpr int kRows = Operand::kRows, kTurns = 4, kTurnRows = kRows / kTurns;
    const int num_panels = (end_row - first_row + kRows - 1) / kRows;
    const int keys_a_turn = (kBlockKeys + kTurns * num_panels - 1) / (kTurns * num_panels);
    Panel before{}, panel = panel_of(block, 0, first_row, end_row);
    score_rows(block, first_row, panel.num_rows);
    for (int number = 0; number < num_panels; ++number) {
      const Panel ahead = panel_of(block, number + 1, first_row, end_row);
      for (int turn = 0; turn < kTurns; ++turn) {
        const int key = (number * kTurns + turn) * keys_a_turn;
        prefetch(next, key, key + keys_a_turn, shape.head_size);
        turn < 2 ? score_half(ahead, turn) : add_half(before, turn - 2);
        const int end = (turn + 1) * kTurnRows;
        weigh_rows(block, panel, turn * kTurnRows, end < panel.num_rows ? end : panel.num_rows);
      }
      before = panel;
      panel = ahead;
    }
    add_values(before);
  }

  void weigh_rows(const KeyBlock<T>& block, const Panel& panel, int first, int end) {
    for (int row = first; row < end; ++row) {
      weigh_row(block, panel.first_row + row, panel.scores + row * kBlockKeys, panel.num_columns,
                panel.weights + row * kBlockKeys);
    }
  }

  void score_half(const Panel& panel, int half) {
    if (panel.num_rows <= 0) return;
    const auto* queries = reinterpret_cast<const uint32_t*>(scratch.queries);
    multiply_by_tiles(
        panel.num_rows, half_of(panel.num_columns, half),
        {queries + panel.first_row * row_words_, row_words_, scratch.keys, row_words_, row_words_},
        {panel.scores, kBlockKeys, false});
  }

  // Of a whole panel, or of none: products change no rows past it.
  void add_half(const Panel& panel, int half) {
    if (panel.num_rows <= 0) return;
    multiply_by_tiles(panel.num_rows, half_of(shape.head_size, half), value_factors(panel),
                      {scratch.sums + panel.first_row * shape.head_size, shape.head_size, true});
  }

  // The first is the larger, if they are not even.
  static Columns half_of(int num_columns, int half) {
    const int middle = rounded_up(num_columns / 2, 2 * kTileColumns);
    return half == 0 ? Columns{0, middle < num_columns ? middle : num_columns}
                     : Columns{middle, num_columns};
  }

  Factors value_factors(const Panel& panel) const {
    constexpr int kWords = kBlockKeys / Operand::kPerWord;
    return {reinterpret_cast<const uint32_t*>(panel.weights), kWords, scratch.values, panel.depth,
            kWords};
  }

  void weigh_row(const KeyBlock<T>& block, int row, float* scores, int num_columns,
                 typename Operand::Number* weights) {
    hide_from(block, row, scores, num_columns);
    const RowState state = {scratch.maxima + row, scratch.totals + row * kLanes,
                            scratch.sums + row * shape.head_size};
    if (num_columns == kBlockKeys) {
      // So that the compiler writes it out.
      weigh(scores, kBlockKeys, scale_, state, shape.head_size, weights);
    } else {
      weigh(scores, num_columns, scale_, state, shape.head_size, weights);
    }
  }

  // Products by tiles may change rows past these: those of others are kept out of their way.
  void add_values(const Panel& panel) {
    const int head_size = shape.head_size;
    const size_t bytes = sizeof(float) * panel.num_rows * head_size;
    float* own = scratch.sums + panel.first_row * head_size;
    const bool apart =
        panel.num_rows % Operand::kRowsAtOnce != 0 && panel.first_row + panel.num_rows < count;
    float* sums = apart ? scratch.spare_sums : own;
    if (apart) memcpy(sums, own, bytes);
    multiply_as<Operand>(panel.num_rows, head_size, value_factors(panel), {sums, head_size, true});
    if (apart) memcpy(own, sums, bytes);
  }

  const int row_words_;  // of a query
  const ScoreScale scale_;
  const SessionOf<Operand> session_{};
};

}  // namespace
}  // namespace legokv::cpu
