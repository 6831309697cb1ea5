// The C launcher of kv_import: refuses what the kernel can't do, then launches it.
#include <cstdint>

#include "kv_import/kv_import.h"
#include "legokv/alignment.h"
#include "legokv/dtype.h"
#include "legokv/export.h"

namespace legokv {

Status check_kv_import(const LegokvKvImport& import) {
  if (!is_dtype(import.pool_dtype) || !is_dtype(import.block_dtype)) {
    return invalid_argument("kv_import: dtypes are 0, 1 or 2, not %d (pool) and %d (block)",
                            import.pool_dtype, import.block_dtype);
  }
  if (import.page_elements <= 0 || import.page_elements % 8 != 0) {
    return invalid_argument("kv_import: a page of %lld elements is not a multiple of 8",
                            static_cast<long long>(import.page_elements));
  }
  if (!is_aligned(import.pool) || !is_aligned(import.block)) {
    return invalid_argument("kv_import: pool and block must be 16-byte aligned");
  }
  const int64_t blocks = import.num_import_pages * (import.page_elements / 4 / 256 + 1);
  if (import.num_import_pages < 0 || blocks > INT32_MAX) {
    return invalid_argument("kv_import: %lld pages of %lld elements do not fit one launch",
                            static_cast<long long>(import.num_import_pages),
                            static_cast<long long>(import.page_elements));
  }
  return Status::kOk;
}

}  // namespace legokv

LEGOKV_EXPORT int legokv_kv_import(const LegokvKvImport* import, void* stream) {
  legokv::Status status = legokv::check_kv_import(*import);
  if (status == legokv::Status::kOk && import->num_import_pages > 0) {
    status = legokv::launch_kv_import(*import, stream);
  }
  return static_cast<int>(status);
}
