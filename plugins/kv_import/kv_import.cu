#include "kv_import/kv_import.h"
#include "legokv/device.h"
#include "legokv/dtype.h"

namespace legokv {
namespace {

constexpr int kThreads = 256;

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
// pages one after another, so no block is split over two pages.
template <typename Pool, typename Block>
LEGOKV_KERNEL(kThreads)
kv_import_kernel(LEGOKV_PARAMETER LegokvKvImport import) {
  using Stored = Vector<Block, Vector<Pool>::kSize>;
  const int64_t page_vectors = import.page_elements / Vector<Pool>::kSize;
  const int64_t blocks_per_page = (page_vectors + kThreads - 1) / kThreads;
  const int64_t arrival = device::block_x() / blocks_per_page;
  const int64_t vector = device::block_x() % blocks_per_page * kThreads + device::thread_index();
  const int32_t page = import.pages[arrival];
  if (vector >= page_vectors || page < 0 || page >= import.num_pool_pages) return;
  const Stored* block = static_cast<const Stored*>(import.block) + arrival * page_vectors;
  Vector<Pool>* pool = static_cast<Vector<Pool>*>(import.pool) + page * page_vectors;
  pool[vector] = convert<Pool, Block>(block[vector]);
}

template <typename Pool, typename Block>
Status launch_typed(const LegokvKvImport& import, void* stream) {
  const int64_t page_vectors = import.page_elements / Vector<Pool>::kSize;
  const int64_t blocks_per_page = (page_vectors + kThreads - 1) / kThreads;
  const LaunchShape shape = {blocks_per_page * import.num_import_pages, 1, 1, kThreads, 0};
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
