// Linear layers: weights packed once, rows and columns shared among the threads.
#pragma once

#include "cpu/cpu_launchers.h"
#include "legokv/status.h"

namespace legokv::cpu {

bool multiplies(int instruction_set, int dtype);

int64_t packed_elements(int32_t num_columns, int32_t num_products);

Status pack_weight(const void* weight, int32_t num_columns, int32_t num_products, int32_t dtype,
                   void* packed);

int64_t block_bytes(int32_t num_columns, int32_t num_products, int32_t block_bits);

Status pack_blocks(const int8_t* weight, const void* scales, int32_t num_columns,
                   int32_t num_products, int32_t block_bits, void* packed);

Status multiply(const LegokvCpuLinear& linear);

}  // namespace legokv::cpu
