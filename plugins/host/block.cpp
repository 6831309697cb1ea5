// Never compiled with -fsanitize=thread: its own accesses are not the kernel's.
#include "block.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "race_detector.h"

namespace legokv::host {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kLaneBytes = 32;

enum class State { kRunnable, kAtBlockBarrier, kAtWarp, kDone };

struct Warp {
  int arrived = 0;
  WarpOperation operation = WarpOperation::kSync;
  unsigned char lanes[2][kWarpLanes * kLaneBytes] = {};
};

struct PendingCopy {
  Copy copy;
  int64_t group;
};

// Where a thread goes on. swapcontext would keep the mask of signals too: a system call each time.
using Place = void* [5];

struct Fiber {
  ucontext_t beginning = {};
  Place place = {};
  bool has_begun = false;
  State state = State::kDone;
  int block_barriers = 0;  // come to, the skipped one too
  int warp_barriers = 0;
  int block_meetings = 0;
  int warp_syncs = 0;
  int warp_meetings = 0;
  int64_t copy_group = 0;
  std::deque<PendingCopy> copies;
};

struct Settings {
  Order order = Order::kAscending;
  int skipped_block_barrier = -1;
  int skipped_warp_barrier = -1;
};

struct Grid {
  Place scheduler = {};
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<std::unique_ptr<unsigned char[]>> shared_memories;
  unsigned char* shared = nullptr;
  unsigned char* stacks = nullptr;
  int block[3] = {};
  int current = 0;
  int at_block_barrier = 0;
  void (*body)(const void*) = nullptr;
  const void* argument = nullptr;
  RaceDetector races;
  std::mt19937 random{20240917};
};

thread_local Settings settings;
thread_local Grid* grid = nullptr;
thread_local int64_t num_copies = 0;

// Not memcpy: ThreadSanitizer would take its accesses for the kernel's.
void copy_bytes(unsigned char* to, const unsigned char* from, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) *static_cast<volatile unsigned char*>(to + i) = from[i];
}

Fiber& running() { return grid->fibers[grid->current]; }

[[noreturn]] void fail(const char* sentence) {
  fprintf(stderr, "host form: block (%d, %d, %d), thread %d: %s\n", grid->block[0], grid->block[1],
          grid->block[2], grid->current, sentence);
  abort();
}

// A function of its own: the two builtins may not stand in one.
[[noreturn, gnu::noinline]] void go_on_at(Place& place) { __builtin_longjmp(place, 1); }

void park(State state) {
  Fiber& me = running();
  me.state = state;
  grid->races.switch_to_scheduler();
  if (__builtin_setjmp(me.place) == 0) go_on_at(grid->scheduler);
}

// A fiber lives as long as its grid and runs the kernel once for each block.
void fiber_main() {
  for (;;) {
    grid->races.acquire_start();
    grid->body(grid->argument);
    if (!running().copies.empty()) fail("returned with copies it never waited for");
    park(State::kDone);
  }
}

void create_fibers(int threads) {
  grid->fibers.resize(threads);
  void* stacks = mmap(nullptr, kStackBytes * threads, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) fail("no memory for the stacks");
  grid->stacks = static_cast<unsigned char*>(stacks);
  for (int i = 0; i < threads; ++i) {
    ucontext_t& context = grid->fibers[i].beginning;
    getcontext(&context);
    context.uc_stack.ss_sp = grid->stacks + kStackBytes * i;
    context.uc_stack.ss_size = kStackBytes;
    makecontext(&context, fiber_main, 0);
  }
}

void resume(int thread) {
  grid->current = thread;
  grid->races.switch_to_thread(thread);
  if (__builtin_setjmp(grid->scheduler) != 0) return;
  Fiber& fiber = running();
  if (fiber.has_begun) go_on_at(fiber.place);
  fiber.has_begun = true;
  setcontext(&fiber.beginning);
}

void start_block(int shared_bytes) {
  // A new allocation for each block, kept to the end, so that no block's memory looks like
  // another's.
  grid->shared_memories.emplace_back(new unsigned char[shared_bytes + 16]);
  unsigned char* memory = grid->shared_memories.back().get();
  grid->shared = memory + (16 - reinterpret_cast<uintptr_t>(memory) % 16) % 16;
  memset(grid->shared, 0xff, shared_bytes);
  grid->warps.assign(grid->fibers.size() / kWarpLanes, Warp());
  grid->at_block_barrier = 0;
  for (Fiber& fiber : grid->fibers) {
    fiber.state = State::kRunnable;
    fiber.block_barriers = fiber.block_meetings = 0;
    fiber.warp_barriers = fiber.warp_syncs = fiber.warp_meetings = 0;
  }
  grid->races.release_start();
}

void run_block(std::vector<int>& order) {
  const auto done = [](const Fiber& fiber) { return fiber.state == State::kDone; };
  while (!std::all_of(grid->fibers.begin(), grid->fibers.end(), done)) {
    if (settings.order == Order::kShuffled) {
      std::shuffle(order.begin(), order.end(), grid->random);
    }
    bool progress = false;
    for (const int thread : order) {
      if (grid->fibers[thread].state != State::kRunnable) continue;
      resume(thread);
      progress = true;
    }
    if (!progress) fail("waits at a barrier that not all threads reach");
  }
}

void arrive_at_warp(WarpOperation operation) {
  Warp& warp = grid->warps[grid->current / kWarpLanes];
  if (warp.arrived > 0 && warp.operation != operation) {
    fail("the lanes of its warp stand at different operations");
  }
  warp.operation = operation;
  ++running().warp_meetings;
  if (++warp.arrived < kWarpLanes) return park(State::kAtWarp);
  warp.arrived = 0;
  const int first = grid->current / kWarpLanes * kWarpLanes;
  for (int lane = 0; lane < kWarpLanes; ++lane) grid->fibers[first + lane].state = State::kRunnable;
}

}  // namespace

void set_order(Order order) { settings.order = order; }
void skip_block_barrier(int ordinal) { settings.skipped_block_barrier = ordinal; }
void skip_warp_barrier(int ordinal) { settings.skipped_warp_barrier = ordinal; }

void run_grid(const LaunchShape& shape, void (*body)(const void*), const void* argument) {
  Grid own;
  grid = &own;
  own.body = body;
  own.argument = argument;
  create_fibers(shape.threads);
  own.races.create_threads(shape.threads);
  std::vector<int> order(shape.threads);
  for (int i = 0; i < shape.threads; ++i) {
    order[i] = settings.order == Order::kDescending ? shape.threads - 1 - i : i;
  }
  for (own.block[2] = 0; own.block[2] < shape.grid_z; ++own.block[2]) {
    for (own.block[1] = 0; own.block[1] < shape.grid_y; ++own.block[1]) {
      for (own.block[0] = 0; own.block[0] < shape.grid_x; ++own.block[0]) {
        start_block(shape.shared_bytes);
        run_block(order);
      }
    }
  }
  own.races.join_threads();
  munmap(own.stacks, kStackBytes * shape.threads);
  grid = nullptr;
}

int thread_index() { return grid->current; }
int block_index(int axis) { return grid->block[axis]; }
unsigned char* shared_memory() { return grid->shared; }

void meet_block() {
  if (running().block_barriers++ == settings.skipped_block_barrier) return;
  const int meeting = running().block_meetings++;
  grid->races.release_block(meeting);
  if (++grid->at_block_barrier < static_cast<int>(grid->fibers.size())) {
    park(State::kAtBlockBarrier);
  } else {
    grid->at_block_barrier = 0;
    for (Fiber& fiber : grid->fibers) fiber.state = State::kRunnable;
  }
  grid->races.acquire_block(meeting);
}

void meet_warp() {
  if (running().warp_barriers++ == settings.skipped_warp_barrier) return;
  const int warp = grid->current / kWarpLanes, sync = running().warp_syncs++;
  grid->races.release_warp(warp, sync);
  arrive_at_warp(WarpOperation::kSync);
  grid->races.acquire_warp(warp, sync);
}

void exchange(WarpOperation operation, const void* mine, size_t bytes, void* all) {
  Warp& warp = grid->warps[grid->current / kWarpLanes];
  // Two buffers: a lane that has left this meeting may write for the next while others still read.
  unsigned char* lanes = warp.lanes[running().warp_meetings % 2];
  copy_bytes(lanes + grid->current % kWarpLanes * bytes, static_cast<const unsigned char*>(mine),
             bytes);
  arrive_at_warp(operation);
  copy_bytes(static_cast<unsigned char*>(all), lanes, kWarpLanes * bytes);
}

void start_copy(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    fail("copies 16 bytes at an address that is not a multiple of 16");
  }
  num_copies += valid;
  Fiber& fiber = running();
  fiber.copies.push_back({{shared, global, valid}, fiber.copy_group});
}

int64_t take_num_copies() { return std::exchange(num_copies, 0); }

void commit_copies() { ++running().copy_group; }

bool take_due_copy(int pending, Copy* copy) {
  Fiber& fiber = running();
  if (fiber.copies.empty() || fiber.copies.front().group >= fiber.copy_group - pending)
    return false;
  *copy = fiber.copies.front().copy;
  fiber.copies.pop_front();
  return true;
}

}  // namespace legokv::host
