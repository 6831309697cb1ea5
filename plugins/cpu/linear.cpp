#include "cpu/linear.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <type_traits>

#include "cpu/instruction_sets.h"
#include "cpu/kernels/linear_group.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace legokv::cpu {
namespace {

// Enough for a thread that others hold up to leave work to the rest.
constexpr int kGroupsForAThread = 2;

template <typename Number>
using MultiplyGroup = void (*)(const LinearGroup<Number>&);
template <typename Step>
using MultiplyBlocks = void (*)(const LinearGroup<bfloat16, Step>&, bfloat16*);

#if defined(LEGOKV_HAS_PAIR_PANELS)
constexpr MultiplyGroup<bfloat16> kMultiplyByPairs = multiply_by_pairs;
template <typename Step>
constexpr MultiplyBlocks<Step> kMultiplyBlocksByPairs = multiply_blocks_by_pairs<Step>;
#else
constexpr MultiplyGroup<bfloat16> kMultiplyByPairs = nullptr;
template <typename Step>
constexpr MultiplyBlocks<Step> kMultiplyBlocksByPairs = nullptr;
#endif
#if defined(LEGOKV_HAS_AMX_PANELS)
constexpr MultiplyGroup<bfloat16> kMultiplyByAmx = multiply_by_amx;
template <typename Step>
constexpr MultiplyBlocks<Step> kMultiplyBlocksByAmx = multiply_blocks_by_amx<Step>;
#else
constexpr MultiplyGroup<bfloat16> kMultiplyByAmx = nullptr;
template <typename Step>
constexpr MultiplyBlocks<Step> kMultiplyBlocksByAmx = nullptr;
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

// Elements of Weight for so many whole panels' columns.
template <typename Number, typename Weight>
int64_t weight_elements(int64_t num_columns, int64_t num_products) {
  return num_columns * num_products / (std::is_same_v<Weight, Number> ? 1 : kStepElements);
}

template <typename Number, typename Weight>
LinearGroup<Number, Weight> group_of(const LegokvCpuLinear& linear, const Range& rows,
                                     const Range& columns) {
  return {static_cast<const Number*>(linear.x) + rows.first * linear.num_products,
          static_cast<const Weight*>(linear.weight) +
              weight_elements<Number, Weight>(columns.first, linear.num_products),
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
    if (!has_instruction_set(instruction_set)) return nullptr;
    if (instruction_set == LEGOKV_AVX512_BF16) return kMultiplyByPairs;
    return instruction_set == LEGOKV_AMX ? kMultiplyByAmx : nullptr;
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

// Puts a number and its column's scales to their places in the panel's steps.
template <typename Step>
void pack_column(const int8_t* from, const float16* scales, int column, int32_t num_products,
                 Step* panel) {
  for (int product = 0; product < num_products; ++product) {
    Step& step = panel[product / kStepProducts];
    const int64_t i =
        place_in_panel(static_cast<const bfloat16*>(nullptr), column, product % kStepProducts);
    put_number(&step, static_cast<int>(i), from[product]);
    step.scales[column] = scales[product / kStepProducts];
  }
}

template <typename Step>
void pack_columns(const int8_t* weight, const float16* scales, int32_t num_columns,
                  int32_t num_products, Step* packed) {
  const int64_t num_steps = num_products / kStepProducts;
  for (int64_t column = 0; column < num_columns; ++column) {
    pack_column(weight + column * num_products, scales + column * num_steps,
                static_cast<int>(column % kPanelColumns), num_products,
                packed + column / kPanelColumns * num_steps);
  }
}

// Calls body(group, thread) for the parts of the product that threads take one after another.
template <typename Number, typename Weight, typename Body>
void for_groups(const LegokvCpuLinear& linear, const Body& body) {
  const int64_t wanted = linear.num_threads == 1 ? 1 : kGroupsForAThread * linear.num_threads;
  const int64_t num_panels = (linear.num_columns + kPanelColumns - 1) / kPanelColumns;
  const int64_t num_blocks = (linear.num_rows + kBlockRows - 1) / kBlockRows;
  // Columns first: another thread's rows would read the same weights.
  const int64_t across = std::min(num_panels, wanted);
  const int64_t down = std::min(num_blocks, (wanted + across - 1) / across);
  parallel_for(across * down, linear.num_threads, [&](int64_t item, int thread) {
    body(group_of<Number, Weight>(
             linear, range_of(linear.num_rows, kBlockRows, item / across, down),
             range_of(linear.num_columns, kPanelColumns, item % across, across)),
         thread);
  });
}

// Adds what the results are added to, while they are in the thread's cache.
template <typename Number, typename Weight>
void add_residual(const LegokvCpuLinear& linear, const LinearGroup<Number, Weight>& group) {
  if (linear.residual == nullptr) return;
  const Kernels* kernels = choose_kernels(linear.instruction_set, linear.dtype).kernels;
  const auto* residual = static_cast<const Number*>(linear.residual) +
                         (group.out - static_cast<const Number*>(linear.out));
  for (int64_t row = 0; row < group.num_rows; ++row) {
    const int64_t at = row * group.out_stride;
    kernels->add_row(residual + at, group.num_columns, group.out + at);
  }
}

template <typename Number>
void multiply_all(const LegokvCpuLinear& linear) {
  const MultiplyGroup<Number> multiply_group = multiplier<Number>(linear.instruction_set);
  for_groups<Number, Number>(linear, [&](const LinearGroup<Number>& group, int) {
    multiply_group(group);
    add_residual(linear, group);
  });
}

// Where `multiplier` knows the set.
template <typename Step>
MultiplyBlocks<Step> blocks_multiplier(int instruction_set) {
  if (instruction_set == LEGOKV_SOFTWARE_TILES) return multiply_blocks_by_software<Step>;
  return instruction_set == LEGOKV_AMX ? kMultiplyBlocksByAmx<Step> : kMultiplyBlocksByPairs<Step>;
}

template <typename Step>
void multiply_blocks(const LegokvCpuLinear& linear) {
  const MultiplyBlocks<Step> multiply_group = blocks_multiplier<Step>(linear.instruction_set);
  const int64_t elements = expanded_elements(linear.num_rows, linear.num_products);
  const auto scratch = uninitialised<bfloat16>(elements * linear.num_threads);
  for_groups<bfloat16, Step>(linear, [&](const LinearGroup<bfloat16, Step>& group, int thread) {
    multiply_group(group, scratch.get() + thread * elements);
    add_residual(linear, group);
  });
}

// The rows that are multiplied, behind a norm or gate in memory of their own, which `made` gets.
Status prepare_rows(LegokvCpuLinear* linear, Array<char>* made) {
  const LegokvCpuLinear& of = *linear;
  if (of.norm == nullptr && of.gated == 0) return Status::kOk;
  const int64_t row_bytes = int64_t{of.num_products} * (of.dtype == LEGOKV_FLOAT32 ? 4 : 2);
  *made = uninitialised<char>(of.num_rows * row_bytes);
  const LegokvCpuNorm norm = {of.x,
                              of.norm,
                              made->get(),
                              of.num_rows,
                              of.num_products,
                              of.dtype,
                              of.instruction_set,
                              of.num_threads,
                              of.norm_eps};
  const LegokvCpuGate gate = {of.x,     made->get(),        of.num_rows,   of.num_products,
                              of.dtype, of.instruction_set, of.num_threads};
  const Status status = of.gated != 0 ? gate_rows(gate) : norm_rows(norm);
  linear->x = made->get();
  return status;
}

Status multiply_rows(LegokvCpuLinear linear) {
  Array<char> rows;
  const Status status = prepare_rows(&linear, &rows);
  if (status != Status::kOk) return status;
  if (linear.block_bits == 8) {
    multiply_blocks<ByteStep>(linear);
  } else if (linear.block_bits == 4) {
    multiply_blocks<NibbleStep>(linear);
  } else if (linear.dtype == LEGOKV_BFLOAT16) {
    multiply_all<bfloat16>(linear);
  } else {
    multiply_all<float>(linear);
  }
  return Status::kOk;
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

int64_t block_bytes(int32_t num_columns, int32_t num_products, int32_t block_bits) {
  const int64_t num_steps = packed_elements(num_columns, num_products) / kStepElements;
  if (block_bits == 8) return num_steps * static_cast<int64_t>(sizeof(ByteStep));
  return block_bits == 4 ? num_steps * static_cast<int64_t>(sizeof(NibbleStep)) : 0;
}

Status pack_blocks(const int8_t* weight, const void* scales, int32_t num_columns,
                   int32_t num_products, int32_t block_bits, void* packed) {
  const int64_t num_bytes = block_bytes(num_columns, num_products, block_bits);
  if (num_bytes == 0) {
    return invalid_argument(
        "cannot pack a weight [%d, %d] in %d bits: sums of a multiple of %d products, 4 or 8 bits",
        num_columns, num_products, block_bits, kStepProducts);
  }
  std::memset(packed, 0, num_bytes);
  const auto* of_blocks = static_cast<const float16*>(scales);
  if (block_bits == 8) {
    pack_columns(weight, of_blocks, num_columns, num_products, static_cast<ByteStep*>(packed));
  } else {
    pack_columns(weight, of_blocks, num_columns, num_products, static_cast<NibbleStep*>(packed));
  }
  return Status::kOk;
}

Status multiply(const LegokvCpuLinear& linear) {
  if (packed_elements(linear.num_columns, linear.num_products) == 0 || linear.num_rows < 0 ||
      linear.num_threads < 1 || !multiplies(linear.instruction_set, linear.dtype) ||
      (linear.block_bits != 0 &&
       (linear.dtype != LEGOKV_BFLOAT16 ||
        block_bytes(linear.num_columns, linear.num_products, linear.block_bits) == 0)) ||
      (linear.gated != 0 && linear.norm != nullptr)) {
    return invalid_argument(
        "multiply: %lld rows [%d, %d], dtype %d, instruction set %d, %d threads, blocks of %d bits",
        static_cast<long long>(linear.num_rows), linear.num_columns, linear.num_products,
        linear.dtype, linear.instruction_set, linear.num_threads, linear.block_bits);
  }
  if (linear.num_rows == 0) return Status::kOk;
  try {
    return multiply_rows(linear);
  } catch (const std::bad_alloc&) {
    return invalid_argument("no memory left for a product of %lld rows",
                            static_cast<long long>(linear.num_rows));
  }
}

}  // namespace legokv::cpu
