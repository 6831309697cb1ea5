// Tokens drawn of rows of logits, rows shared among the threads.
#pragma once

#include "cpu/cpu_launchers.h"
#include "legokv/status.h"

namespace legokv::cpu {

Status draw_rows(const LegokvCpuDraw& draw);

}  // namespace legokv::cpu
