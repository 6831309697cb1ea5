#include "cpu/draw.h"

#include <atomic>

#include "cpu/instruction_sets.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "legokv/dtype.h"

namespace legokv::cpu {
namespace {

// Kept by each thread from one step to the next: the system hands out new memory page by page.
char* scratch(int64_t bytes) {
  static thread_local Array<char> memory;
  static thread_local int64_t size = 0;
  if (size < bytes) {
    size = 0;
    memory = uninitialised<char>(bytes);
    size = bytes;
  }
  return memory.get();
}

bool are_tokens(const int64_t* ids, int64_t count, int num_tokens) {
  bool all = true;
  for (int64_t i = 0; i < count; ++i) all &= ids[i] >= 0 && ids[i] < num_tokens;
  return all;
}

DrawRow row_of(const LegokvCpuDraw& draw, int64_t number) {
  const int64_t next = number + draw.num_threads;
  return {draw.rows[number], next < draw.num_rows ? draw.rows[next].values : nullptr,
          draw.num_tokens, draw.dtype, draw.is_exact != 0};
}

}  // namespace

Status draw_rows(const LegokvCpuDraw& draw) {
  const Kernels* kernels = choose_kernels(draw.instruction_set, draw.dtype).kernels;
  if (kernels == nullptr || draw.dtype == LEGOKV_FLOAT16 || draw.num_rows < 0 ||
      draw.num_tokens < 1 || draw.num_threads < 1) {
    return invalid_argument("draw: %lld rows of %d, %s, %d threads",
                            static_cast<long long>(draw.num_rows), draw.num_tokens,
                            instruction_set_name(draw.instruction_set), draw.num_threads);
  }
  int64_t bytes = 0;
  for (int64_t row = 0; row < draw.num_rows; ++row) {
    const DrawRow one = row_of(draw, row);
    if (!are_tokens(one.change_ids, one.num_changes, draw.num_tokens) ||
        !are_tokens(one.banned_ids, one.num_banned, draw.num_tokens)) {
      return invalid_argument("draw: row %lld changes a token that is not among its %d",
                              static_cast<long long>(row), draw.num_tokens);
    }
    bytes = std::max(bytes, kernels->draw_scratch_bytes(one));
  }
  // No exception may leave a thread's loop.
  std::atomic<bool> has_memory = true;
  parallel_for(draw.num_rows, draw.num_threads, [&](int64_t row, int) {
    try {
      draw.out[row] = kernels->draw_row(row_of(draw, row), scratch(bytes));
    } catch (const std::bad_alloc&) {
      has_memory = false;
    }
  });
  if (!has_memory) throw std::bad_alloc();
  return Status::kOk;
}

}  // namespace legokv::cpu
