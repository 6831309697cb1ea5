// Attention over all keys from attention over parts of them, each relative to its own maximum.
#pragma once

#include "cpu/kernels/exponential.h"
#include "cpu/kernels/output_row.h"

namespace legokv::cpu {
namespace {

// A row over some of its keys: values [head size] weighted relative to `maximum`, and the sum of
// the weights, 0 where no key was seen.
struct RowPart {
  float* sums;
  float* total;
  float* maximum;
};

inline void copy_part(const RowPart& row, const RowPart& part, int head_size) {
  memcpy(row.sums, part.sums, sizeof(float) * head_size);
  *row.total = *part.total;
  *row.maximum = *part.maximum;
}

// Each sum is one number plus one product: compilers can round that in one way only.
inline void add_part(const RowPart& row, const RowPart& part, float exponent_scale, int head_size) {
  if (*part.total == 0) return;
  if (*row.total == 0) return copy_part(row, part, head_size);
  const bool raises = *part.maximum > *row.maximum;
  const RowPart &large = raises ? part : row, &small = raises ? row : part;
  const Floats share =
      exp2_of<float>(all_lanes((*small.maximum - *large.maximum) * exponent_scale));
  for (int i = 0; i < head_size; i += kLanes) {
    store_vector(row.sums + i,
                 load_vector<Floats>(large.sums + i) + share * load_vector<Floats>(small.sums + i));
  }
  *row.total = *large.total + share[0] * *small.total;
  *row.maximum = *large.maximum;
}

// What the row's weights were relative to, for those who sum them key by key.
inline void leave_stats(const RowPart& row, const Tile& tile, int number) {
  if (tile.stats == nullptr) return;
  float* stats = tile.stats + number * kStatFloats;
  stats[0] = *row.maximum;
  stats[1] = *row.total == 0 ? 0 : 1 / *row.total;
}

// The parts of each row that tiles left, joined one after another, as a tile does by itself.
template <typename T>
void join_parts(const Shape& shape, const LegokvCpuLayer& layer, const Tile& tile, int num_parts) {
  const int num_rows = tile.num_tokens * (shape.num_heads / shape.num_kv_heads);
  const int head_size = shape.head_size, row_floats = head_size + kPartTail;
  const int64_t part_floats = int64_t{num_rows} * row_floats;
  const auto part_at = [head_size](float* sums) -> RowPart {
    return {sums, sums + head_size, sums + head_size + 1};
  };
  for (int r = 0; r < num_rows; ++r) {
    float* first = tile.parts + int64_t{r} * row_floats;
    const RowPart row = part_at(first);
    for (int part = 1; part < num_parts; ++part) {
      add_part(row, part_at(first + part * part_floats), shape.exponent_scale, head_size);
    }
    store_mean(row.sums, *row.total, head_size, output_row<T>(shape, layer, tile, r));
    leave_stats(row, tile, r);
  }
}

}  // namespace
}  // namespace legokv::cpu
