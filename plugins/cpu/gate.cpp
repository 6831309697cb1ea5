#include "cpu/gate.h"

#include <algorithm>

#include "cpu/instruction_sets.h"
#include "cpu/parallel.h"
#include "legokv/dtype.h"

namespace legokv::cpu {
namespace {

// Enough for a thread that it is worth waking.
constexpr int64_t kRangeElements = 16384;

}  // namespace

Status gate_rows(const LegokvCpuGate& gate) {
  const Kernels* kernels = choose_kernels(gate.instruction_set, gate.dtype).kernels;
  if (kernels == nullptr || gate.num_rows < 0 || gate.num_columns < 1 || gate.num_threads < 1) {
    return invalid_argument("gate: %lld rows of %d, dtype %d, %s, %d threads",
                            static_cast<long long>(gate.num_rows), gate.num_columns, gate.dtype,
                            instruction_set_name(gate.instruction_set), gate.num_threads);
  }
  const int64_t row_bytes = int64_t{gate.num_columns} * (gate.dtype == LEGOKV_FLOAT32 ? 4 : 2);
  const int64_t at_once = std::max<int64_t>(1, kRangeElements / gate.num_columns);
  const auto* x = static_cast<const char*>(gate.x);
  auto* out = static_cast<char*>(gate.out);
  parallel_for((gate.num_rows + at_once - 1) / at_once, gate.num_threads, [&](int64_t range, int) {
    const int64_t end = std::min((range + 1) * at_once, gate.num_rows);
    for (int64_t row = range * at_once; row < end; ++row) {
      kernels->gate_row(x + row * 2 * row_bytes, gate.num_columns, out + row * row_bytes);
    }
  });
  return Status::kOk;
}

}  // namespace legokv::cpu
