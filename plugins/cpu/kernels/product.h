// A block of a matrix product held in registers: c (+)= a * b, a's rows against b's columns.
#pragma once

#include "cpu/kernels/operands.h"

namespace legokv::cpu {
namespace {

// Row r of `a` begins at r * row_words; `b` is packed, kPanelWidth words for each word of a row.
struct Factors {
  const uint32_t* a;
  int row_words;
  const uint32_t* b;
  int depth;         // words of a row that count
  int packed_depth;  // words of a row that `b` is packed for
};

struct Sums {
  float* c;
  int row_floats;
  bool add;  // to what is there; else it is replaced
};

template <typename Operand, int kRows, int kVectors>
void multiply_block(const Factors& factors, const Sums& sums) {
  Floats sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const float* at = sums.c + r * sums.row_floats + v * kLanes;
      sum[r][v] = sums.add ? load_vector<Floats>(at) : Floats{};
    }
  }
  for (int word = 0; word < factors.depth; ++word) {
    Words b[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      b[v] = load_vector<Words>(factors.b + word * kPanelWidth + v * kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const uint32_t a = factors.a[r * factors.row_words + word];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = Operand::multiply_add(sum[r][v], a, b[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      store_vector(sums.c + r * sums.row_floats + v * kLanes, sum[r][v]);
    }
  }
}

template <typename Operand, int kRows, int kVectors = kPanelVectors>
inline void multiply_vectors(int num_vectors, const Factors& factors, const Sums& sums) {
  if constexpr (kVectors > 1) {
    if (num_vectors < kVectors) {
      return multiply_vectors<Operand, kRows, kVectors - 1>(num_vectors, factors, sums);
    }
  }
  multiply_block<Operand, kRows, kVectors>(factors, sums);
}

template <typename Operand, int kRows = kPanelRows>
inline void multiply_rows(int num_rows, int num_vectors, const Factors& factors, const Sums& sums) {
  if constexpr (kRows > 1) {
    if (num_rows < kRows) {
      return multiply_rows<Operand, kRows - 1>(num_rows, num_vectors, factors, sums);
    }
  }
  multiply_vectors<Operand, kRows>(num_vectors, factors, sums);
}

// The same for any number of columns, panel by panel of `b`.
template <typename Operand>
inline void multiply(int num_rows, int num_vectors, const Factors& factors, const Sums& sums) {
  for (int first = 0; first < num_vectors; first += kPanelVectors) {
    const int left = num_vectors - first;
    const int64_t panel = int64_t{first} * kLanes * factors.packed_depth;
    multiply_rows<Operand>(
        num_rows, left < kPanelVectors ? left : kPanelVectors,
        {factors.a, factors.row_words, factors.b + panel, factors.depth, factors.packed_depth},
        {sums.c + first * kLanes, sums.row_floats, sums.add});
  }
}

}  // namespace
}  // namespace legokv::cpu
