// A block's threads as fibers on one CPU thread: what the host form of legokv::device stands on.
//
// Fibers run until they meet others or return, in an order the caller sets; so a kernel that needs
// no missing barrier gives the same result in every order. Meeting points that can't be met (a
// thread has returned, lanes of a warp stand at different operations) end the process with a
// sentence. Under ThreadSanitizer (LEGOKV_TSAN) each fiber is a thread of its own, ordered with
// others by barriers only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "legokv/launch_shape.h"

namespace legokv::host {

constexpr int kWarpLanes = 32;

// What the lanes of a warp meet for; all of them must meet for the same.
enum class WarpOperation { kSync, kShuffle, kBallot, kLoadMatrices, kTranspose, kMultiply };

// The order in which a block's runnable threads are resumed.
enum class Order { kAscending = 0, kDescending = 1, kShuffled = 2 };

// Runs `body(argument)` once for each thread of each block. Shared memory starts as NaNs.
void run_grid(const LaunchShape& shape, void (*body)(const void*), const void* argument);

void set_order(Order order);

// The n-th block barrier (or warp barrier) of every thread does nothing, for showing that a missing
// one is found; -1: none is skipped.
void skip_block_barrier(int ordinal);
void skip_warp_barrier(int ordinal);

// What the running thread sees.
int thread_index();
int block_index(int axis);
unsigned char* shared_memory();

void meet_block();
void meet_warp();

// Leaves `bytes` (32 at most) bytes of this lane and gets those of all lanes, in lane order, once
// all have come. It orders no other memory access, as a shuffle doesn't.
void exchange(WarpOperation operation, const void* mine, size_t bytes, void* all);

// Copies that have been started and not waited for, oldest first.
void start_copy(void* shared, const void* global, bool valid);
void commit_copies();
struct Copy {
  void* shared;
  const void* global;
  bool valid;
};
// Of 16 bytes from global memory, since this was last asked.
int64_t take_num_copies();
// Takes a copy of a group that is older than the last `pending` ones; false if there is none.
bool take_due_copy(int pending, Copy* copy);

}  // namespace legokv::host
