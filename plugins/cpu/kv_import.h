// Putting stored pages into a pool on the host, and copying pages that lie there.
#pragma once

#include "cpu/cpu_launchers.h"
#include "legokv/launchers.h"
#include "legokv/status.h"

namespace legokv::cpu {

// Pages outside the pool are not written.
Status import_pages(const LegokvKvImport& import, int num_threads);

Status copy_pages(const LegokvCpuPageCopy& copy);

}  // namespace legokv::cpu
