// Putting stored pages into a pool on the host.
#pragma once

#include "legokv/launchers.h"
#include "legokv/status.h"

namespace legokv::cpu {

// Pages outside the pool are not written.
Status import_pages(const LegokvKvImport& import, int num_threads);

}  // namespace legokv::cpu
