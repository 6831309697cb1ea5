// The C launcher of kv_import: refuses what the kernel can't do, then launches it.
#include <cstdint>
#include <initializer_list>

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
  for (const int64_t elements : {import.half_elements, import.layer_stride, import.value_stride,
                                 import.page_stride, import.last_elements}) {
    if (elements < 0 || elements % 8 != 0) {
      return invalid_argument("kv_import: runs of %lld elements are not multiples of 8",
                              static_cast<long long>(elements));
    }
  }
  if (!is_aligned(import.pool) || !is_aligned(import.block)) {
    return invalid_argument("kv_import: pool and block must be 16-byte aligned");
  }
  const int64_t blocks = import.num_import_pages * (import.half_elements / 4 / 256 + 1);
  if (import.num_import_pages < 0 || blocks > INT32_MAX || import.half_elements == 0 ||
      import.num_layers < 1 || import.num_layers > 65535) {
    return invalid_argument(
        "kv_import: %lld pages of 2 x %lld elements in %lld layers do not fit one launch",
        static_cast<long long>(import.num_import_pages),
        static_cast<long long>(import.half_elements), static_cast<long long>(import.num_layers));
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
