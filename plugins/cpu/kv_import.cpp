// kv_import on a CPU: runs of keys and values copied, converted where the types differ. And pages
// copied within the pools.
#include "cpu/kv_import.h"

#include <cstring>

#include "cpu/parallel.h"
#include "legokv/dtype.h"

namespace legokv::cpu {
namespace {

template <typename To, typename From>
void copy_run(To* to, const From* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from_float<To>(to_float(from[i]));
}

template <typename T>
void copy_run(T* to, const T* from, int64_t count) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
}

// Keys or values of one page of one layer.
template <typename To, typename From>
void import_half(const LegokvKvImport& import, int64_t layer, int64_t arrival, int64_t values) {
  const int64_t page = import.pages[arrival], half = import.half_elements;
  if (page < 0 || page >= import.num_pool_pages) return;
  To* to =
      static_cast<To*>(import.pool) + ((layer * import.num_pool_pages + page) * 2 + values) * half;
  const From* from = static_cast<const From*>(import.block) + layer * import.layer_stride +
                     values * import.value_stride + arrival * import.page_stride;
  const bool is_last = arrival + 1 == import.num_import_pages;
  const int64_t count = is_last ? import.last_elements : half;
  copy_run(to, from, count);
  // All types have a zero of zero bytes.
  std::memset(static_cast<void*>(to + count), 0, static_cast<size_t>(half - count) * sizeof(To));
}

}  // namespace

Status import_pages(const LegokvKvImport& import, int num_threads) {
  if (!is_dtype(import.pool_dtype) || !is_dtype(import.block_dtype) || num_threads < 1) {
    return invalid_argument("kv_import: dtypes %d and %d, %d threads", import.pool_dtype,
                            import.block_dtype, num_threads);
  }
  const int64_t halves = 2 * import.num_import_pages;
  with_dtype(import.pool_dtype, [&](auto pool) {
    with_dtype(import.block_dtype, [&](auto block) {
      parallel_for(import.num_layers * halves, num_threads, [&](int64_t i, int) {
        const int64_t at = i % halves;
        import_half<decltype(pool), decltype(block)>(import, i / halves, at % (halves / 2),
                                                     at / (halves / 2));
      });
    });
  });
  return Status::kOk;
}

Status copy_pages(const LegokvCpuPageCopy& copy) {
  if (copy.num_threads < 1 || copy.page_bytes < 0) {
    return invalid_argument("copy_pages: pages of %lld bytes, %d threads",
                            static_cast<long long>(copy.page_bytes), copy.num_threads);
  }
  for (int i = 0; i < copy.num_pages; ++i) {
    for (const int32_t page : {copy.sources[i], copy.targets[i]}) {
      if (page >= 0 && page < copy.num_pool_pages) continue;
      return invalid_argument("copy_pages: page %d, the pool has %lld", page,
                              static_cast<long long>(copy.num_pool_pages));
    }
  }
  auto* pools = static_cast<char*>(copy.pools);
  parallel_for(copy.num_layers * copy.num_pages, copy.num_threads, [&](int64_t i, int) {
    char* pool = pools + i / copy.num_pages * copy.num_pool_pages * copy.page_bytes;
    std::memcpy(pool + copy.targets[i % copy.num_pages] * copy.page_bytes,
                pool + copy.sources[i % copy.num_pages] * copy.page_bytes,
                static_cast<size_t>(copy.page_bytes));
  });
  return Status::kOk;
}

}  // namespace legokv::cpu
