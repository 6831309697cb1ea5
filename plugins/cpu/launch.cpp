// The C functions of the CPU library: they refuse what no kernel can do, and let no exception out.
#include <new>

#include "cpu/check_step.h"
#include "cpu/cpu_launchers.h"
#include "cpu/draw.h"
#include "cpu/drift.h"
#include "cpu/kv_import.h"
#include "cpu/linear.h"
#include "cpu/rows.h"
#include "cpu/step.h"
#include "legokv/export.h"

namespace legokv::cpu {
namespace {

Step* begin(const LegokvCpuStep& step) {
  if (check_step(step) != Status::kOk) return nullptr;
  const Choice choice = choose_kernels(step.instruction_set, step.dtype);
  if (choice.kernels == nullptr) {
    const Status refused =
        invalid_argument("no %s kernels for dtype %d in this library and on this processor",
                         instruction_set_name(step.instruction_set), step.dtype);
    static_cast<void>(refused);
    return nullptr;
  }
  return new Step(step, choice);
}

}  // namespace
}  // namespace legokv::cpu

LEGOKV_EXPORT void* legokv_cpu_begin(const LegokvCpuStep* step) {
  try {
    return legokv::cpu::begin(*step);
  } catch (const std::bad_alloc&) {
    const legokv::Status refused =
        legokv::invalid_argument("no memory left for a step of %d tokens", step->num_tokens);
    static_cast<void>(refused);
    return nullptr;
  }
}

LEGOKV_EXPORT int legokv_cpu_advance(void* begun, const LegokvCpuStep* step) {
  using namespace legokv::cpu;
  if (check_step(*step) != legokv::Status::kOk) return 0;
  try {
    const Choice choice = choose_kernels(step->instruction_set, step->dtype);
    return static_cast<Step*>(begun)->advance(*step, choice) ? 1 : 0;
  } catch (const std::bad_alloc&) {
    return 0;
  }
}

LEGOKV_EXPORT void legokv_cpu_attend(void* begun, const LegokvCpuLayer* layer) {
  static_cast<legokv::cpu::Step*>(begun)->attend(*layer);
}

LEGOKV_EXPORT int legokv_cpu_instruction_set(const void* begun) {
  return static_cast<const legokv::cpu::Step*>(begun)->instruction_set();
}

LEGOKV_EXPORT int64_t legokv_cpu_num_keys_read(const void* begun) {
  return static_cast<const legokv::cpu::Step*>(begun)->num_keys_read();
}

LEGOKV_EXPORT void legokv_cpu_end(void* begun) { delete static_cast<legokv::cpu::Step*>(begun); }

LEGOKV_EXPORT int legokv_cpu_kv_import(const LegokvKvImport* import, int num_threads) {
  return static_cast<int>(legokv::cpu::import_pages(*import, num_threads));
}

LEGOKV_EXPORT int legokv_cpu_copy_pages(const LegokvCpuPageCopy* copy) {
  return static_cast<int>(legokv::cpu::copy_pages(*copy));
}

LEGOKV_EXPORT int legokv_cpu_drift(const LegokvCpuDrift* drift) {
  try {
    return static_cast<int>(legokv::cpu::drift_documents(*drift));
  } catch (const std::bad_alloc&) {
    return static_cast<int>(legokv::invalid_argument(
        "no memory left for the drift of a step of %d tokens", drift->num_tokens));
  }
}

LEGOKV_EXPORT int64_t legokv_cpu_packed_elements(int32_t num_columns, int32_t num_products) {
  return legokv::cpu::packed_elements(num_columns, num_products);
}

LEGOKV_EXPORT int legokv_cpu_pack_weight(const void* weight, int32_t num_columns,
                                         int32_t num_products, int32_t dtype, void* packed) {
  return static_cast<int>(
      legokv::cpu::pack_weight(weight, num_columns, num_products, dtype, packed));
}

LEGOKV_EXPORT int64_t legokv_cpu_block_bytes(int32_t num_columns, int32_t num_products,
                                             int32_t block_bits) {
  return legokv::cpu::block_bytes(num_columns, num_products, block_bits);
}

LEGOKV_EXPORT int legokv_cpu_pack_blocks(const int8_t* weight, const void* scales,
                                         int32_t num_columns, int32_t num_products,
                                         int32_t block_bits, void* packed) {
  return static_cast<int>(
      legokv::cpu::pack_blocks(weight, scales, num_columns, num_products, block_bits, packed));
}

LEGOKV_EXPORT int legokv_cpu_multiply(const LegokvCpuLinear* linears, int32_t count) {
  legokv::Status status = legokv::Status::kOk;
  for (int32_t i = 0; i < count && status == legokv::Status::kOk; ++i) {
    status = legokv::cpu::multiply(linears[i]);
  }
  return static_cast<int>(status);
}

LEGOKV_EXPORT int legokv_cpu_gate(const LegokvCpuGate* gate) {
  return static_cast<int>(legokv::cpu::gate_rows(*gate));
}

LEGOKV_EXPORT int legokv_cpu_norm(const LegokvCpuNorm* norm) {
  return static_cast<int>(legokv::cpu::norm_rows(*norm));
}

LEGOKV_EXPORT int legokv_cpu_draw(const LegokvCpuDraw* draw) {
  try {
    return static_cast<int>(legokv::cpu::draw_rows(*draw));
  } catch (const std::bad_alloc&) {
    return static_cast<int>(legokv::invalid_argument("no memory left to draw tokens of %lld rows",
                                                     static_cast<long long>(draw->num_rows)));
  }
}

LEGOKV_EXPORT int legokv_cpu_multiplies(int instruction_set, int dtype) {
  return legokv::cpu::multiplies(instruction_set, dtype) ? 1 : 0;
}

LEGOKV_EXPORT int legokv_cpu_has(int instruction_set) {
  return legokv::cpu::has_instruction_set(instruction_set) ? 1 : 0;
}

LEGOKV_EXPORT int legokv_cpu_best(int dtype) {
  return legokv::cpu::choose_kernels(LEGOKV_BEST, dtype).instruction_set;
}

LEGOKV_EXPORT const char* legokv_cpu_last_error() { return legokv::last_error(); }
