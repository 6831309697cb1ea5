// Attention of one part of several sequences: a block of keys is packed once for all who see it.
#pragma once

#include "cpu/kernels/tile_rows.h"

namespace legokv::cpu {
namespace {

// Past every key that there is.
constexpr int32_t kAfterAll = INT32_MAX - 1;

template <typename Operand, typename T>
class SharedAttention {
 public:
  SharedAttention(const Shape& shape, const LegokvCpuLayer& layer, const SharedTile& tile,
                  void* memory)
      : tile_(tile), rows_(shape, layer, tile.kv_head, tile.num_rows, memory) {
    for (int row = 0; row < tile.num_rows; ++row) rows_.scratch.positions[row] = kAfterAll;
  }

  void run() {
    turn_queries();
    rows_.forget();
    KeyBlock<T>* blocks = rows_.scratch.blocks;
    take(0, &blocks[0]);
    for (int i = 0; i < tile_.num_visits; ++i) {
      take(i + 1, &blocks[(i + 1) % 2]);
      const Visit& visit = tile_.visits[i];
      rows_.attend_block(blocks[i % 2], blocks[(i + 1) % 2], visit.first_row,
                         visit.first_row + visit.num_rows);
    }
    leave();
  }

 private:
  void turn_queries() {
    int row = 0;
    for (int m = 0; m < tile_.num_members; ++m) {
      const Member& member = tile_.members[m];
      for (int token = 0; token < member.num_tokens; ++token, row += rows_.heads) {
        rows_.turn_token(row, member.first_token + token,
                         member.turns + int64_t{token} * rows_.shape.head_size);
      }
    }
  }

  // The block of a visit, or none after the last.
  void take(int number, KeyBlock<T>* block) const {
    RunCursor cursor = {nullptr, nullptr, 0, kBlockKeys};
    if (number < tile_.num_visits) {
      const Visit& visit = tile_.visits[number];
      cursor = {visit.runs, visit.runs + visit.num_runs, 0, kBlockKeys};
    }
    take_block(&cursor, rows_.shape, rows_.pool_head(), kAfterAll, rows_.scratch.zeros, block);
  }

  void leave() const {
    int row = 0;
    for (int m = 0; m < tile_.num_members; ++m) {
      const Member& member = tile_.members[m];
      const int end_row = row + member.num_tokens * rows_.heads;
      rows_.leave(row, end_row, member.left + tile_.kv_head * member.head_floats);
      row = end_row;
    }
  }

  const SharedTile& tile_;
  TileRows<Operand, T> rows_;
};

}  // namespace
}  // namespace legokv::cpu
