// What no kernel can do, refused before anything is written.
#pragma once

#include "cpu/cpu_launchers.h"
#include "legokv/status.h"

namespace legokv::cpu {

// Sizes, dtype, and the tables' contents: every number that becomes an address.
Status check_step(const LegokvCpuStep& step);

}  // namespace legokv::cpu
