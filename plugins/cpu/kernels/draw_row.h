// A token drawn from a row of logits: quickly, or exactly where that alone decides.
#pragma once

#include "cpu/kernels/exact_draw.h"
#include "cpu/kernels/quick_draw.h"

namespace legokv::cpu {
namespace {

constexpr int64_t kNotFinite = -1;

template <typename Raw>
int64_t draw_exactly(const DrawRow& row, RowBlocks<Raw>& blocks, Parts& parts) {
  auto* values = parts.take<double>(int64_t{blocks.num_blocks} * kDrawBlock);
  auto* memory = parts.take<char>(exact_draw_bytes(row.num_tokens));
  if (values == nullptr) return 0;
  blocks.copy_all(values);
  return ExactDraw(row, blocks, values, memory).run();
}

template <typename Raw>
int64_t draw_of(const DrawRow& row, Parts& parts) {
  RowBlocks<Raw> blocks(row, parts);
  QuickDraw<Raw> quick(row, blocks, parts);
  if (!blocks.read()) return kNotFinite;
  if (row.temperature == 0 || blocks.most == -kInfinity) return blocks.first_of_most();
  const int64_t id = row.is_exact ? kUnsure : quick.run();
  return id == kUnsure ? draw_exactly(row, blocks, parts) : id;
}

int64_t draw_scratch_bytes(const DrawRow& row) {
  Parts parts(nullptr);
  RowBlocks<float> blocks(row, parts);
  QuickDraw<float> quick(row, blocks, parts);
  draw_exactly(row, blocks, parts);
  return parts.bytes();
}

int64_t draw_row(const DrawRow& row, void* memory) {
  Parts parts(static_cast<char*>(memory));
  if (row.dtype == LEGOKV_BFLOAT16) return draw_of<bfloat16>(row, parts);
  return draw_of<float>(row, parts);
}

}  // namespace
}  // namespace legokv::cpu
