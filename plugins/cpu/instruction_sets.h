// Which builds of the kernels this library and this processor have.
#pragma once

#include "cpu/kernels/kernels.h"

namespace legokv::cpu {

struct Choice {
  const Kernels* kernels;  // null: `instruction_set` cannot do it here
  int instruction_set;
};

// The kernels of a LegokvInstructionSet for a dtype; BEST becomes the one that is taken.
Choice choose_kernels(int instruction_set, int dtype);

bool has_instruction_set(int instruction_set);

const char* instruction_set_name(int instruction_set);

}  // namespace legokv::cpu
