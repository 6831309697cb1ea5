// Attention over all keys from attention over parts of them, each relative to its own maximum.
#pragma once

#include "cpu/kernels/exponential.h"
#include "cpu/kernels/output_row.h"

namespace legokv::cpu {
namespace {

// Adds the other parts of a row to its first.
inline void gather_row(const Shape& shape, float* row, int64_t part_stride, int num_parts) {
  const int head_size = shape.head_size;
  float* end = row + part_stride * num_parts;
  float maximum = row[head_size + 1];
  for (const float* part = row; part != end; part += part_stride) {
    maximum = part[head_size + 1] > maximum ? part[head_size + 1] : maximum;
  }
  float total = 0;
  for (float* part = row; part != end; part += part_stride) {
    const float exponent = (part[head_size + 1] - maximum) * shape.exponent_scale;
    const Floats share = exp2_of<float>(all_lanes(exponent));
    total += share[0] * part[head_size];
    for (int i = 0; i < head_size; i += kLanes) {
      const Floats weighted = share * load_vector<Floats>(part + i);
      store_vector(row + i, part == row ? weighted : load_vector<Floats>(row + i) + weighted);
    }
  }
  row[head_size] = total;
}

template <typename T>
void join_parts(const Shape& shape, const LegokvCpuLayer& layer, const Tile& tile, int num_parts) {
  const int num_rows = tile.num_tokens * (shape.num_heads / shape.num_kv_heads);
  const int row_floats = shape.head_size + kPartTail;
  for (int r = 0; r < num_rows; ++r) {
    float* row = tile.part + int64_t{r} * row_floats;
    gather_row(shape, row, int64_t{num_rows} * row_floats, num_parts);
    store_mean(row, row[shape.head_size], shape.head_size, output_row<T>(shape, layer, tile, r));
  }
}

}  // namespace
}  // namespace legokv::cpu
