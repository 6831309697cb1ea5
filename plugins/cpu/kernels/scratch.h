// What a thread needs to attend one tile, carved from one piece of memory.
#pragma once

#include "cpu/kernels/key_block.h"
#include "cpu/kernels/softmax.h"

namespace legokv::cpu {
namespace {

// Panels of rows whose scores, or weights, are kept at once.
template <typename Operand>
constexpr int kBuffers = Operand::kInTurns ? 2 : 1;

// R rows of a tile and of what a product takes past them; W words of a head as products take them;
// D rounded up to whole panels where values are packed.
template <typename Operand, typename T>
struct Scratch {
  typename Operand::Number* queries;  // [R, W], turned to a base
  float* sums;                        // [R, D]
  float* totals;                      // [R, kLanes]
  float* maxima;                      // [R]
  float* joined_sums;                 // [R, D], of the parts before
  float* joined_totals;               // [R]
  float* joined_maxima;               // [R]
  float* spare_sums;                  // [Operand::kRows, D]
  int32_t* positions;                 // [R]
  uint32_t* keys;
  uint32_t* values;
  float* scores;                      // [kBuffers, Operand::kRows, kBlockKeys]
  typename Operand::Number* weights;  // [kBuffers, Operand::kRows, kBlockKeys]
  T* zeros;                           // [D]
  KeyBlock<T>* blocks;                // [2]: the present one and the next
};

// Hands out pieces of memory one after another; with no memory it only counts.
struct Carver {
  char* memory;
  int64_t used = 0;

  template <typename Number>
  void take(Number** place, int64_t count) {
    if (memory) *place = reinterpret_cast<Number*>(memory + used);
    used += (count * static_cast<int64_t>(sizeof(Number)) + 63) / 64 * 64;
  }
};

template <typename Operand, typename T>
int64_t carve(const Shape& shape, void* memory, Scratch<Operand, T>* scratch) {
  const int64_t rows = shape.max_rows + Operand::kRows, head_size = shape.head_size;
  const int64_t row_words = head_words<Operand>(shape.head_size);
  const int64_t padded = (head_size + kPanelWidth - 1) / kPanelWidth * kPanelWidth;
  Carver carver{static_cast<char*>(memory)};
  carver.take(&scratch->queries, rows * row_words * Operand::kPerWord);
  carver.take(&scratch->sums, rows * head_size);
  carver.take(&scratch->totals, rows * kLanes);
  carver.take(&scratch->maxima, rows);
  carver.take(&scratch->joined_sums, rows * head_size);
  carver.take(&scratch->joined_totals, rows);
  carver.take(&scratch->joined_maxima, rows);
  carver.take(&scratch->spare_sums, Operand::kRows * head_size);
  carver.take(&scratch->positions, rows);
  carver.take(&scratch->keys, kBlockKeys * row_words);
  carver.take(&scratch->values, kBlockKeys * padded / Operand::kPerWord);
  carver.take(&scratch->scores, kBuffers<Operand> * Operand::kRows * kBlockKeys);
  carver.take(&scratch->weights, kBuffers<Operand> * Operand::kRows * kBlockKeys);
  carver.take(&scratch->zeros, head_size);
  carver.take(&scratch->blocks, 2);
  return carver.used;
}

template <typename Operand, typename T>
void clear(const Shape& shape, int num_rows, const Scratch<Operand, T>& scratch) {
  memset(scratch.sums, 0, sizeof(float) * num_rows * shape.head_size);
  memset(scratch.totals, 0, sizeof(float) * num_rows * kLanes);
  for (int row = 0; row < num_rows; ++row) scratch.maxima[row] = kNoScore;
}

}  // namespace
}  // namespace legokv::cpu
