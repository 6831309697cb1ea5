#include "kv_import/kv_import.h"
#include "legokv/device.h"
#include "legokv/dtype.h"
#include "legokv/host_device.h"

namespace legokv {
namespace {

constexpr int kThreads = 256;

// Thread blocks for the keys, or the values, of a page.
template <typename Pool>
LEGOKV_HOST_DEVICE uint32_t half_blocks(const LegokvKvImport& import) {
  constexpr int kElements = kThreads * Vector<Pool>::kSize;
  return static_cast<uint32_t>((import.half_elements + kElements - 1) / kElements);
}

template <typename Pool, typename Block>
LEGOKV_DEVICE Vector<Pool> convert(const Vector<Block, Vector<Pool>::kSize>& stored) {
  Vector<Pool> converted;
#pragma unroll
  for (int i = 0; i < converted.kSize; ++i) {
    converted.values[i] = from_float<Pool>(to_float(stored.values[i]));
  }
  return converted;
}

// One thread writes 16 bytes of the pool; neighbours write neighbouring bytes. Blocks are dealt to
// keys or values of pages one after another, so no block is split over two. Layers are in y, keys
// and values in z.
template <typename Pool, typename Block>
LEGOKV_KERNEL(kThreads)
kv_import_kernel(LEGOKV_PARAMETER LegokvKvImport import) {
  using Stored = Vector<Block, Vector<Pool>::kSize>;
  constexpr int kSize = Vector<Pool>::kSize;
  const uint32_t blocks_per_half = half_blocks<Pool>(import);
  const uint32_t arrival = static_cast<uint32_t>(device::block_x()) / blocks_per_half;
  const uint32_t block_of_half = static_cast<uint32_t>(device::block_x()) % blocks_per_half;
  const int64_t element = (int64_t{block_of_half} * kThreads + device::thread_index()) * kSize;
  const int32_t page = import.pages[arrival];
  if (element >= import.half_elements || page < 0 || page >= import.num_pool_pages) return;
  const int64_t layer = device::block_y(), values = device::block_z();
  const Block* from = static_cast<const Block*>(import.block) + layer * import.layer_stride +
                      values * import.value_stride + arrival * import.page_stride + element;
  Pool* to = static_cast<Pool*>(import.pool) +
             ((layer * import.num_pool_pages + page) * 2 + values) * import.half_elements + element;
  const bool is_stored = arrival + 1 < import.num_import_pages || element < import.last_elements;
  Stored stored = {};
  if (is_stored) stored = *reinterpret_cast<const Stored*>(from);
  *reinterpret_cast<Vector<Pool>*>(to) = convert<Pool, Block>(stored);
}

template <typename Pool, typename Block>
Status launch_typed(const LegokvKvImport& import, void* stream) {
  const LaunchShape shape = {int64_t{half_blocks<Pool>(import)} * import.num_import_pages,
                             static_cast<int>(import.num_layers), 2, kThreads, 0};
  return device::launch(kv_import_kernel<Pool, Block>, shape, stream, import);
}

}  // namespace

Status launch_kv_import(const LegokvKvImport& import, void* stream) {
  return with_dtype(import.pool_dtype, [&](auto pool) {
    return with_dtype(import.block_dtype, [&](auto block) {
      return launch_typed<decltype(pool), decltype(block)>(import, stream);
    });
  });
}

}  // namespace legokv
