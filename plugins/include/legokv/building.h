// Whether this process builds plans: a builder may run a plugin over tables of arbitrary numbers.
#pragma once

#include <cstdlib>

namespace legokv {

// Set by legokv.plan.process for the process it starts. No name that others use, as IS_BUILDING is:
// where it is set by chance, every answer would be of no attention at all.
constexpr char kBuildingVariable[] = "LEGOKV_BUILDING_PLAN";

inline bool is_building() { return std::getenv(kBuildingVariable) != nullptr; }

}  // namespace legokv
