// One instruction set's table of kernels; CMake compiles this file once for each of them.
#include "cpu/kernels/kernels.h"

#include <type_traits>

#include "cpu/kernels/attend_shared.h"
#include "cpu/kernels/attend_tile.h"
#include "cpu/kernels/draw_row.h"
#include "cpu/kernels/drift_page.h"
#include "cpu/kernels/float_panels.h"
#include "cpu/kernels/gate_row.h"
#include "cpu/kernels/join_parts.h"
#include "cpu/kernels/norm_row.h"

namespace legokv::cpu {
namespace {

template <typename Operand, typename T>
int64_t scratch_bytes(const Shape& shape) {
  Scratch<Operand, T> unused;
  return carve(shape, nullptr, &unused);
}

template <typename T>
void write_token(const Shape& shape, const LegokvCpuLayer& layer, int token, const float* turn,
                 int64_t key_offset) {
  const T* key = static_cast<const T*>(layer.k) + token * layer.k_stride;
  const T* value = static_cast<const T*>(layer.v) + token * layer.v_stride;
  T* stored = static_cast<T*>(layer.pool) + key_offset;
  for (int head = 0; head < shape.num_kv_heads; ++head) {
    const int at = head * shape.head_size;
    rotate_head(key + at, turn, shape.head_size, stored + at);
  }
  memcpy(stored + shape.value_distance, value, sizeof(T) * shape.token_stride);
}

template <typename Operand, typename T>
void attend_tile(const Shape& shape, const LegokvCpuLayer& layer, const Tile& tile, void* memory) {
  TileAttention<Operand, T>(shape, layer, tile, memory).run();
}

template <typename Operand, typename T>
void attend_shared(const Shape& shape, const LegokvCpuLayer& layer, const SharedTile& tile,
                   void* memory) {
  SharedAttention<Operand, T>(shape, layer, tile, memory).run();
}

template <typename Operand, typename T>
void add_mass(const Shape& shape, const LegokvCpuLayer& layer, const Tile& tile, void* memory) {
  TileAttention<Operand, T>(shape, layer, tile, memory).add_mass();
}

template <typename Operand, typename T>
constexpr Kernels kTable = {scratch_bytes<Operand, T>,
                            write_token<T>,
                            attend_tile<Operand, T>,
                            attend_shared<Operand, T>,
                            join_parts<T>,
                            add_mass<Operand, T>,
                            gate_row<T>,
                            norm_row<T>,
                            add_row<T>,
                            drift_page<T>,
                            draw_scratch_bytes,
                            draw_row,
                            std::is_same_v<T, float> ? multiply_floats : nullptr};

}  // namespace

const Kernels* LEGOKV_KERNELS(int dtype) {
#if defined(__AMX_BF16__) || defined(LEGOKV_SOFTWARE_TILES_FORM)
  return dtype == LEGOKV_BFLOAT16 ? &kTable<TileWords, bfloat16> : nullptr;
#elif defined(__AVX512BF16__)
  return dtype == LEGOKV_BFLOAT16 ? &kTable<PairWords, bfloat16> : nullptr;
#else
  switch (dtype) {
    case LEGOKV_FLOAT32:
      return &kTable<FloatWords, float>;
    case LEGOKV_FLOAT16:
      return &kTable<FloatWords, float16>;
    case LEGOKV_BFLOAT16:
      return &kTable<FloatWords, bfloat16>;
    default:
      return nullptr;
  }
#endif
}

}  // namespace legokv::cpu
