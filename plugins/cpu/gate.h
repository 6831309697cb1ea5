// Gates of gated MLPs, rows shared among the threads.
#pragma once

#include "cpu/cpu_launchers.h"
#include "legokv/status.h"

namespace legokv::cpu {

Status gate_rows(const LegokvCpuGate& gate);

}  // namespace legokv::cpu
