// What is done row by row between the products, rows shared among the threads.
#pragma once

#include "cpu/cpu_launchers.h"
#include "legokv/status.h"

namespace legokv::cpu {

Status gate_rows(const LegokvCpuGate& gate);

Status norm_rows(const LegokvCpuNorm& norm);

}  // namespace legokv::cpu
