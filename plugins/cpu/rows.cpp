#include "cpu/rows.h"

#include <algorithm>

#include "cpu/instruction_sets.h"
#include "cpu/parallel.h"
#include "legokv/dtype.h"

namespace legokv::cpu {
namespace {

// Enough for a thread that it is worth waking.
constexpr int64_t kRangeElements = 16384;

// The kernels for rows of Operation's type; null if it is none that they can do.
template <typename Operation>
const Kernels* kernels_of(const Operation& rows) {
  const Kernels* kernels = choose_kernels(rows.instruction_set, rows.dtype).kernels;
  const bool fits = rows.num_rows >= 0 && rows.num_columns >= 1 && rows.num_threads >= 1;
  return fits ? kernels : nullptr;
}

template <typename Operation>
Status refused(const char* name, const Operation& rows) {
  return invalid_argument("%s: %lld rows of %d, dtype %d, %s, %d threads", name,
                          static_cast<long long>(rows.num_rows), rows.num_columns, rows.dtype,
                          instruction_set_name(rows.instruction_set), rows.num_threads);
}

// Calls body(x, out) with the addresses of each row; a row of x is `width` times one of out.
template <typename Operation, typename Body>
void for_rows(const Operation& rows, int width, const Body& body) {
  const int64_t row_bytes = int64_t{rows.num_columns} * (rows.dtype == LEGOKV_FLOAT32 ? 4 : 2);
  const int64_t at_once = std::max<int64_t>(1, kRangeElements / rows.num_columns);
  const auto* x = static_cast<const char*>(rows.x);
  auto* out = static_cast<char*>(rows.out);
  parallel_for((rows.num_rows + at_once - 1) / at_once, rows.num_threads, [&](int64_t range, int) {
    const int64_t end = std::min((range + 1) * at_once, rows.num_rows);
    for (int64_t row = range * at_once; row < end; ++row) {
      body(x + row * width * row_bytes, out + row * row_bytes);
    }
  });
}

}  // namespace

Status gate_rows(const LegokvCpuGate& gate) {
  const Kernels* kernels = kernels_of(gate);
  if (kernels == nullptr) return refused("gate", gate);
  for_rows(gate, 2, [&](const void* x, void* out) { kernels->gate_row(x, gate.num_columns, out); });
  return Status::kOk;
}

Status norm_rows(const LegokvCpuNorm& norm) {
  const Kernels* kernels = kernels_of(norm);
  if (kernels == nullptr) return refused("norm", norm);
  for_rows(norm, 1, [&](const void* x, void* out) {
    kernels->norm_row(x, norm.weight, norm.eps, norm.num_columns, out);
  });
  return Status::kOk;
}

}  // namespace legokv::cpu
