// Copies stored pages into the pool, converting their type.
#pragma once

#include "legokv/status.h"

namespace legokv {

Status check_kv_import(const LegokvKvImport& import);
Status launch_kv_import(const LegokvKvImport& import, void* stream);

}  // namespace legokv
