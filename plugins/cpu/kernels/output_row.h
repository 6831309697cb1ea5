// Where a row's output goes, and how it is made of weighted values.
#pragma once

#include "cpu/kernels/conversions.h"
#include "cpu/kernels/kernels.h"

namespace legokv::cpu {
namespace {

template <typename T>
T* output_row(const Shape& shape, const LegokvCpuLayer& layer, const Tile& tile, int row) {
  const int heads = shape.num_heads / shape.num_kv_heads;
  const int64_t token = tile.first_token + row / heads;
  const int head = tile.kv_head * heads + row % heads;
  return static_cast<T*>(layer.out) + (token * shape.num_heads + head) * shape.head_size;
}

// A row that has seen no key has no total, and gives zeros.
template <typename T>
void store_mean(const float* sums, float total, int head_size, T* out) {
  const float share = total == 0 ? 0 : 1 / total;
  for (int i = 0; i < head_size; i += kLanes) {
    store_floats<kLanes>(out + i, load_vector<Floats>(sums + i) * share);
  }
}

}  // namespace
}  // namespace legokv::cpu
