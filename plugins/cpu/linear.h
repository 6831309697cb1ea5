// Linear layers: weights packed once, rows and columns shared among the threads.
#pragma once

#include "cpu/cpu_launchers.h"
#include "legokv/status.h"

namespace legokv::cpu {

bool multiplies(int instruction_set, int dtype);

int64_t packed_elements(int32_t num_columns, int32_t num_products);

Status pack_weight(const void* weight, int32_t num_columns, int32_t num_products, int32_t dtype,
                   void* packed);

int64_t int8_bytes(int32_t num_columns, int32_t num_products);

Status pack_int8(const int8_t* weight, const void* scales, int32_t num_columns,
                 int32_t num_products, void* packed);

Status multiply(const LegokvCpuLinear& linear);

}  // namespace legokv::cpu
