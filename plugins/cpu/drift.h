// Documents that move as what is recomputed of them does.
#pragma once

#include "cpu/cpu_launchers.h"
#include "legokv/status.h"

namespace legokv::cpu {

Status drift_documents(const LegokvCpuDrift& drift);

}  // namespace legokv::cpu
