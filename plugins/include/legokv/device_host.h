// The host form of legokv::device: the same names, kept by fibers (host/block.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host/block.h"
#include "legokv/launch_shape.h"
#include "legokv/numbers.h"
#include "legokv/status.h"

#define LEGOKV_DEVICE inline
#define LEGOKV_DEVICE_CALL inline
#define LEGOKV_PARAMETER const
#define LEGOKV_KERNEL(max_threads) void

namespace legokv::device {

inline int thread_index() { return host::thread_index(); }
inline int64_t block_x() { return host::block_index(0); }
inline int block_y() { return host::block_index(1); }
inline int block_z() { return host::block_index(2); }

inline unsigned char* shared_memory() { return host::shared_memory(); }

inline void sync_block() { host::meet_block(); }
inline void sync_warp() { host::meet_warp(); }

inline int lane_index() { return thread_index() % host::kWarpLanes; }

inline float shuffle_xor(float value, int mask) {
  float all[host::kWarpLanes];
  host::exchange(host::WarpOperation::kShuffle, &value, sizeof value, all);
  return all[lane_index() ^ mask];
}

inline uint32_t ballot(bool condition) {
  bool all[host::kWarpLanes];
  host::exchange(host::WarpOperation::kBallot, &condition, sizeof condition, all);
  uint32_t bits = 0;
  for (int lane = 0; lane < host::kWarpLanes; ++lane) bits |= uint32_t{all[lane]} << lane;
  return bits;
}

inline int lowest_bit(uint32_t bits) { return __builtin_ctz(bits); }

inline int count_bits(uint32_t bits) { return __builtin_popcount(bits); }

inline float exp2(float value) { return std::exp2(value); }

// A copy writes at any time from its start to its wait. Here it writes NaNs at once and the bytes
// when it is waited for: who still reads the old ones is found out, and who reads too early.
inline void copy_async_16(void* shared, const void* global, bool valid) {
  host::start_copy(shared, global, valid);
  *static_cast<Vector<uint32_t>*>(shared) = {{~0u, ~0u, ~0u, ~0u}};
}

inline void commit_copies() { host::commit_copies(); }

template <int kPending>
void wait_copies() {
  host::Copy copy;
  while (host::take_due_copy(kPending, &copy)) {
    Vector<uint32_t> bytes = {};
    if (copy.valid) bytes = *static_cast<const Vector<uint32_t>*>(copy.global);
    *static_cast<Vector<uint32_t>*>(copy.shared) = bytes;
  }
}

using MatrixRow = Vector<uint16_t>;

inline void load_matrices(uint32_t (&matrices)[4], const void* row) {
  MatrixRow all[host::kWarpLanes];
  const MatrixRow mine = *static_cast<const MatrixRow*>(row);
  host::exchange(host::WarpOperation::kLoadMatrices, &mine, sizeof mine, all);
  const int lane = lane_index();
  for (int matrix = 0; matrix < 4; ++matrix) {
    const uint16_t* pair = &all[matrix * 8 + lane / 4].values[lane % 4 * 2];
    matrices[matrix] = pair[0] | uint32_t{pair[1]} << 16;
  }
}

inline void load_matrices_transposed(uint32_t (&matrices)[4], const void* row) {
  MatrixRow all[host::kWarpLanes];
  const MatrixRow mine = *static_cast<const MatrixRow*>(row);
  host::exchange(host::WarpOperation::kLoadMatrices, &mine, sizeof mine, all);
  const int lane = lane_index();
  for (int matrix = 0; matrix < 4; ++matrix) {
    const MatrixRow* rows = &all[matrix * 8 + lane % 4 * 2];
    matrices[matrix] = rows[0].values[lane / 4] | uint32_t{rows[1].values[lane / 4]} << 16;
  }
}

inline uint32_t transpose(uint32_t matrix) {
  uint32_t all[host::kWarpLanes];
  host::exchange(host::WarpOperation::kTranspose, &matrix, sizeof matrix, all);
  // Row lane / 4 of the transposed is a column: its numbers are halves of other lanes' pairs.
  const int column = lane_index() / 4, row = lane_index() % 4 * 2;
  const int shift = column % 2 * 16;
  const uint32_t first = all[row * 4 + column / 2] >> shift & 0xffffu;
  const uint32_t second = all[row * 4 + 4 + column / 2] >> shift & 0xffffu;
  return first | second << 16;
}

// One lane's share of both operands, as the PTX manual lays out m16n8k16 of 16-bit types.
struct Fragments {
  uint32_t a[4];
  uint32_t b[2];
};

template <typename T>
float fragment_a(const Fragments* lanes, int row, int column) {
  const Fragments& owner = lanes[row % 8 * 4 + column % 8 / 2];
  const uint32_t pair = owner.a[row / 8 + column / 8 * 2];
  return column % 2 ? high_of_pair<T>(pair) : low_of_pair<T>(pair);
}

template <typename T>
float fragment_b(const Fragments* lanes, int row, int column) {
  const uint32_t pair = lanes[column * 4 + row % 8 / 2].b[row / 8];
  return row % 2 ? high_of_pair<T>(pair) : low_of_pair<T>(pair);
}

template <typename T>
void multiply_accumulate(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const Fragments mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  Fragments all[host::kWarpLanes];
  host::exchange(host::WarpOperation::kMultiply, &mine, sizeof mine, all);
  const int lane = lane_index();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int inner = 0; inner < 16; ++inner) {
      sum[i] += fragment_a<T>(all, row, inner) * fragment_b<T>(all, inner, column);
    }
  }
}

template <typename Argument>
Status launch(void (*kernel)(Argument), const LaunchShape& shape, void*, const Argument& argument) {
  struct Call {
    void (*kernel)(Argument);
    const Argument* argument;
  };
  const Call call = {kernel, &argument};
  const auto body = [](const void* opaque) {
    const Call& of = *static_cast<const Call*>(opaque);
    of.kernel(*of.argument);
  };
  host::run_grid(shape, body, &call);
  return Status::kOk;
}

}  // namespace legokv::device
