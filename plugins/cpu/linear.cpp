#include "cpu/linear.h"

#include <algorithm>
#include <type_traits>

#include "cpu/instruction_sets.h"
#include "cpu/kernels/linear_group.h"
#include "cpu/parallel.h"

namespace legokv::cpu {
namespace {

// Enough for a thread that others hold up to leave work to the rest.
constexpr int kGroupsForAThread = 2;

template <typename Number>
using MultiplyGroup = void (*)(const LinearGroup<Number>&);

#if defined(LEGOKV_HAS_AMX_PANELS)
constexpr MultiplyGroup<bfloat16> kMultiplyByAmx = multiply_by_amx;
#else
constexpr MultiplyGroup<bfloat16> kMultiplyByAmx = nullptr;
#endif

// The range of blocks or panels, `size` long each, that is the `i`-th of `count`; it ends at `end`.
struct Range {
  int64_t first;
  int64_t end;
};

Range range_of(int64_t end, int size, int64_t i, int64_t count) {
  const int64_t pieces = (end + size - 1) / size;
  return {pieces * i / count * size, std::min(pieces * (i + 1) / count * size, end)};
}

template <typename Number>
LinearGroup<Number> group_of(const LegokvCpuLinear& linear, const Range& rows,
                             const Range& columns) {
  return {static_cast<const Number*>(linear.x) + rows.first * linear.num_products,
          static_cast<const Number*>(linear.weight) + columns.first * linear.num_products,
          linear.bias == nullptr ? nullptr : linear.bias + columns.first,
          static_cast<Number*>(linear.out) + rows.first * linear.num_columns + columns.first,
          linear.num_columns,
          rows.end - rows.first,
          static_cast<int32_t>(columns.end - columns.first),
          linear.num_products};
}

template <typename Number>
MultiplyGroup<Number> multiplier(int instruction_set) {
  if constexpr (std::is_same_v<Number, bfloat16>) {
    if (instruction_set == LEGOKV_SOFTWARE_TILES) return multiply_by_software;
    const bool amx = instruction_set == LEGOKV_AMX && has_instruction_set(LEGOKV_AMX);
    return amx ? kMultiplyByAmx : nullptr;
  } else {
    const Kernels* kernels = choose_kernels(instruction_set, LEGOKV_FLOAT32).kernels;
    return kernels == nullptr ? nullptr : kernels->multiply;
  }
}

// Where a product of a panel's column stands in the panel.
int64_t place_in_panel(const bfloat16*, int column, int product) {
  const int step = product / kStepProducts, pair = product % kStepProducts / 2;
  return int64_t{step} * kStepElements + column / kTileColumns * (kStepElements / 2) +
         pair * 2 * kTileColumns + column % kTileColumns * 2 + product % 2;
}

int64_t place_in_panel(const float*, int column, int product) {
  return int64_t{product} * kPanelColumns + column;
}

template <typename Number>
void pack(const Number* from, int32_t num_columns, int32_t num_products, Number* to) {
  std::fill(to, to + packed_elements(num_columns, num_products), Number{0});
  for (int64_t column = 0; column < num_columns; ++column, from += num_products) {
    Number* panel = to + column / kPanelColumns * kPanelColumns * num_products;
    for (int product = 0; product < num_products; ++product) {
      panel[place_in_panel(from, column % kPanelColumns, product)] = from[product];
    }
  }
}

template <typename Number>
void multiply_all(const LegokvCpuLinear& linear) {
  const MultiplyGroup<Number> multiply_group = multiplier<Number>(linear.instruction_set);
  const int64_t wanted = linear.num_threads == 1 ? 1 : kGroupsForAThread * linear.num_threads;
  const int64_t num_panels = (linear.num_columns + kPanelColumns - 1) / kPanelColumns;
  const int64_t num_blocks = (linear.num_rows + kBlockRows - 1) / kBlockRows;
  // Columns first: another thread's rows would read the same weights.
  const int64_t across = std::min(num_panels, wanted);
  const int64_t down = std::min(num_blocks, (wanted + across - 1) / across);
  parallel_for(across * down, linear.num_threads, [&](int64_t item, int) {
    multiply_group(
        group_of<Number>(linear, range_of(linear.num_rows, kBlockRows, item / across, down),
                         range_of(linear.num_columns, kPanelColumns, item % across, across)));
  });
}

}  // namespace

bool multiplies(int instruction_set, int dtype) {
  if (dtype == LEGOKV_BFLOAT16) return multiplier<bfloat16>(instruction_set) != nullptr;
  return dtype == LEGOKV_FLOAT32 && multiplier<float>(instruction_set) != nullptr;
}

int64_t packed_elements(int32_t num_columns, int32_t num_products) {
  if (num_columns < 1 || num_products < 1 || num_products % kStepProducts != 0) return 0;
  const int64_t num_panels = (int64_t{num_columns} + kPanelColumns - 1) / kPanelColumns;
  return num_panels * kPanelColumns * num_products;
}

Status pack_weight(const void* weight, int32_t num_columns, int32_t num_products, int32_t dtype,
                   void* packed) {
  if (packed_elements(num_columns, num_products) == 0) {
    return invalid_argument("cannot pack a weight [%d, %d]: sums of a multiple of %d products",
                            num_columns, num_products, kStepProducts);
  }
  if (dtype == LEGOKV_BFLOAT16) {
    pack(static_cast<const bfloat16*>(weight), num_columns, num_products,
         static_cast<bfloat16*>(packed));
  } else if (dtype == LEGOKV_FLOAT32) {
    pack(static_cast<const float*>(weight), num_columns, num_products, static_cast<float*>(packed));
  } else {
    return invalid_argument("cannot pack a weight of dtype %d: only float32 and bfloat16", dtype);
  }
  return Status::kOk;
}

Status multiply(const LegokvCpuLinear& linear) {
  if (packed_elements(linear.num_columns, linear.num_products) == 0 || linear.num_rows < 0 ||
      linear.num_threads < 1 || !multiplies(linear.instruction_set, linear.dtype)) {
    return invalid_argument(
        "multiply: %lld rows [%d, %d], dtype %d, instruction set %d, %d threads",
        static_cast<long long>(linear.num_rows), linear.num_columns, linear.num_products,
        linear.dtype, linear.instruction_set, linear.num_threads);
  }
  if (linear.num_rows == 0) return Status::kOk;
  linear.dtype == LEGOKV_BFLOAT16 ? multiply_all<bfloat16>(linear) : multiply_all<float>(linear);
  return Status::kOk;
}

}  // namespace legokv::cpu
