#include "cpu/draw.h"

#include "cpu/instruction_sets.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "legokv/dtype.h"

namespace legokv::cpu {

Status draw_rows(const LegokvCpuDraw& draw) {
  const Kernels* kernels = choose_kernels(draw.instruction_set, LEGOKV_FLOAT32).kernels;
  if (kernels == nullptr || draw.num_rows < 0 || draw.num_tokens < 1 || draw.num_threads < 1) {
    return invalid_argument("draw: %lld rows of %d, %s, %d threads",
                            static_cast<long long>(draw.num_rows), draw.num_tokens,
                            instruction_set_name(draw.instruction_set), draw.num_threads);
  }
  const int64_t bytes = draw_scratch_bytes(draw.num_tokens);
  const auto memory = uninitialised<char>(bytes * draw.num_threads);
  const int64_t row_bytes = int64_t{draw.num_tokens} * (draw.is_double != 0 ? 8 : 4);
  parallel_for(draw.num_rows, draw.num_threads, [&](int64_t row, int thread) {
    const DrawRow one = {static_cast<const char*>(draw.values) + row * row_bytes,
                         draw.num_tokens,
                         draw.is_double != 0,
                         draw.top_k[row],
                         draw.temperature[row],
                         draw.top_p[row],
                         draw.min_p[row],
                         draw.place[row]};
    draw.out[row] = kernels->draw_row(one, memory.get() + thread * bytes);
  });
  return Status::kOk;
}

}  // namespace legokv::cpu
