// kv_import on a CPU: whole pages copied, converted where the types differ.
#include "cpu/kv_import.h"

#include <cstring>

#include "cpu/parallel.h"
#include "legokv/dtype.h"

namespace legokv::cpu {
namespace {

template <typename To, typename From>
void copy_page(To* to, const From* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from_float<To>(to_float(from[i]));
}

template <typename T>
void copy_page(T* to, const T* from, int64_t count) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
}

}  // namespace

Status import_pages(const LegokvKvImport& import, int num_threads) {
  if (!is_dtype(import.pool_dtype) || !is_dtype(import.block_dtype) || num_threads < 1) {
    return invalid_argument("kv_import: dtypes %d and %d, %d threads", import.pool_dtype,
                            import.block_dtype, num_threads);
  }
  with_dtype(import.pool_dtype, [&](auto pool_type) {
    with_dtype(import.block_dtype, [&](auto block_type) {
      auto* pool = static_cast<decltype(pool_type)*>(import.pool);
      const auto* block = static_cast<const decltype(block_type)*>(import.block);
      parallel_for(import.num_import_pages, num_threads, [&](int64_t i, int) {
        const int64_t page = import.pages[i];
        if (page < 0 || page >= import.num_pool_pages) return;
        copy_page(pool + page * import.page_elements, block + i * import.page_elements,
                  import.page_elements);
      });
    });
  });
  return Status::kOk;
}

}  // namespace legokv::cpu
