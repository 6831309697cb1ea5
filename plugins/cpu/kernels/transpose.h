// A square of kLanes vectors turned over its diagonal, in registers.
#pragma once

#include "cpu/kernels/vectors.h"

namespace legokv::cpu {
namespace {

// Lane masks for two vectors whose numbers differ in the bit `kHalf`: each keeps the half on its
// side of the diagonal and takes the other's half from across it.
template <int kHalf>
inline void exchange_halves(Words* low, Words* high) {
  Words keep_low, keep_high;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int across = lane & ~kHalf;
    keep_low[lane] = lane & kHalf ? kLanes + across : lane;
    keep_high[lane] = lane & kHalf ? kLanes + lane : across + kHalf;
  }
  const Words first = *low, second = *high;
  *low = __builtin_shuffle(first, second, keep_low);
  *high = __builtin_shuffle(first, second, keep_high);
}

template <int kHalf = kLanes / 2>
inline void transpose(Words* square) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (!(i & kHalf)) exchange_halves<kHalf>(&square[i], &square[i + kHalf]);
  }
  if constexpr (kHalf > 1) transpose<kHalf / 2>(square);
}

}  // namespace
}  // namespace legokv::cpu
