// How many blocks of how many threads, with how much shared memory.
#pragma once

#include <cstdint>

namespace legokv {

// What a block may have of shared memory on every GPU from sm_80 on.
constexpr int kMaxSharedBytes = 99 * 1024;

struct LaunchShape {
  int64_t grid_x;  // below 2^31
  int grid_y;      // below 2^16
  int grid_z;
  int threads;
  int shared_bytes;
};

}  // namespace legokv
