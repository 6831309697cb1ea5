#include "cpu/linear.h"

#include <algorithm>

#include "cpu/kernels/linear_group.h"
#include "cpu/parallel.h"

#if defined(LEGOKV_HAS_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace legokv::cpu {
namespace {

// Enough for a thread that others hold up to leave work to the rest.
constexpr int kGroupsForAThread = 2;

using MultiplyGroup = void (*)(const LinearGroup&);

#if defined(LEGOKV_HAS_AMX)
constexpr MultiplyGroup kMultiplyByAmx = multiply_by_amx;

// Linux lets a process use the tiles' large registers only if it asks.
bool ask_for_amx() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("avx512bf16") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
constexpr MultiplyGroup kMultiplyByAmx = nullptr;

bool ask_for_amx() { return false; }
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

LinearGroup group_of(const LegokvCpuLinear& linear, const Range& rows, const Range& columns) {
  return {static_cast<const bfloat16*>(linear.x) + rows.first * linear.num_products,
          static_cast<const bfloat16*>(linear.weight) + columns.first * linear.num_products,
          linear.bias == nullptr ? nullptr : linear.bias + columns.first,
          static_cast<bfloat16*>(linear.out) + rows.first * linear.num_columns + columns.first,
          linear.num_columns,
          rows.end - rows.first,
          static_cast<int32_t>(columns.end - columns.first),
          linear.num_products};
}

}  // namespace

bool has_tiles(int tiles) {
  static const bool amx = ask_for_amx();
  return tiles == LEGOKV_SOFTWARE_TILES || (tiles == LEGOKV_AMX_TILES && amx);
}

int64_t packed_elements(int32_t num_columns, int32_t num_products) {
  if (num_columns < 1 || num_products < 1 || num_products % kStepProducts != 0) return 0;
  const int64_t num_panels = (int64_t{num_columns} + kPanelColumns - 1) / kPanelColumns;
  return num_panels * kPanelColumns * num_products;
}

Status pack_weight(const void* weight, int32_t num_columns, int32_t num_products, void* packed) {
  const int64_t count = packed_elements(num_columns, num_products);
  if (count == 0) {
    return invalid_argument("no tiles for a weight [%d, %d]: sums of a multiple of %d products",
                            num_columns, num_products, kStepProducts);
  }
  const auto* from = static_cast<const bfloat16*>(weight);
  auto* to = static_cast<bfloat16*>(packed);
  std::fill(to, to + count, bfloat16{0});
  for (int64_t column = 0; column < num_columns; ++column, from += num_products) {
    const int64_t panel = column / kPanelColumns, in_panel = column % kPanelColumns;
    bfloat16* tile = to + panel * kPanelColumns * num_products +
                     in_panel / kTileColumns * (kStepElements / 2) + in_panel % kTileColumns * 2;
    for (int product = 0; product < num_products; ++product) {
      const int step = product / kStepProducts, pair = product % kStepProducts / 2;
      tile[int64_t{step} * kStepElements + pair * 2 * kTileColumns + product % 2] = from[product];
    }
  }
  return Status::kOk;
}

Status multiply(const LegokvCpuLinear& linear) {
  if (packed_elements(linear.num_columns, linear.num_products) == 0 || linear.num_rows < 0 ||
      linear.num_threads < 1 || !has_tiles(linear.tiles)) {
    return invalid_argument("multiply: %lld rows [%d, %d], tiles %d, %d threads",
                            static_cast<long long>(linear.num_rows), linear.num_columns,
                            linear.num_products, linear.tiles, linear.num_threads);
  }
  const MultiplyGroup multiply_group =
      linear.tiles == LEGOKV_AMX_TILES ? kMultiplyByAmx : multiply_by_software;
  if (linear.num_rows == 0) return Status::kOk;
  const int64_t wanted = linear.num_threads == 1 ? 1 : kGroupsForAThread * linear.num_threads;
  const int64_t num_panels = (linear.num_columns + kPanelColumns - 1) / kPanelColumns;
  const int64_t num_blocks = (linear.num_rows + kBlockRows - 1) / kBlockRows;
  // Columns first: another thread's rows would read the same weights.
  const int64_t across = std::min(num_panels, wanted);
  const int64_t down = std::min(num_blocks, (wanted + across - 1) / across);
  parallel_for(across * down, linear.num_threads, [&](int64_t item, int) {
    multiply_group(group_of(linear, range_of(linear.num_rows, kBlockRows, item / across, down),
                            range_of(linear.num_columns, kPanelColumns, item % across, across)));
  });
  return Status::kOk;
}

}  // namespace legokv::cpu
