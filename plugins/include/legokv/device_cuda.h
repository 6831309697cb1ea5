// The CUDA form of legokv::device; sm_80 and later.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "legokv/launch_shape.h"
#include "legokv/numbers.h"
#include "legokv/status.h"

#define LEGOKV_DEVICE __device__ __forceinline__
#define LEGOKV_DEVICE_CALL __device__ __noinline__
// Marks a kernel's parameter: read where the launch left it, not copied by each thread.
#define LEGOKV_PARAMETER const __grid_constant__
#define LEGOKV_KERNEL(max_threads) __global__ void __launch_bounds__(max_threads)

namespace legokv::device {

constexpr uint32_t kAllLanes = 0xffffffffu;

LEGOKV_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
LEGOKV_DEVICE int64_t block_x() { return blockIdx.x; }
LEGOKV_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
LEGOKV_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }

// The block's dynamic shared memory, 16-byte aligned, of the size given at the launch.
LEGOKV_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

LEGOKV_DEVICE void sync_block() { __syncthreads(); }
LEGOKV_DEVICE void sync_warp() { __syncwarp(); }

LEGOKV_DEVICE float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}

// Bit i is lane i's `condition`.
LEGOKV_DEVICE uint32_t ballot(bool condition) { return __ballot_sync(kAllLanes, condition); }

LEGOKV_DEVICE int lowest_bit(uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }

LEGOKV_DEVICE int count_bits(uint32_t bits) { return __popc(bits); }

// 0 for what is below 2^-126.
LEGOKV_DEVICE float exp2(float value) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

// Starts a copy of 16 bytes from global to shared memory, zeros where `valid` is false.
LEGOKV_DEVICE void copy_async_16(void* shared, const void* global, bool valid) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
               "r"(bytes)
               : "memory");
}

// Closes a group of copies; wait_copies<n> waits for all of this thread's groups but the last n.
LEGOKV_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
LEGOKV_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8x8 matrices of 16-bit numbers: lane i gives the address of row i % 8 of matrix i / 8 and
// gets, of every matrix, row lane / 4, columns 2 * (lane % 4) and the next.
LEGOKV_DEVICE void load_matrices(uint32_t (&matrices)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}

// The same of the transposed matrices.
LEGOKV_DEVICE void load_matrices_transposed(uint32_t (&matrices)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}

// An 8x8 matrix of 16-bit numbers, of which a lane has two as load_matrices() gives them,
// transposed.
LEGOKV_DEVICE uint32_t transpose(uint32_t matrix) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(matrix));
  return transposed;
}

#define LEGOKV_MMA(types)                                                             \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." types                         \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])               \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// sum += a * b on tensor cores, a 16x16 row-major, b 16x8 column-major, sum 16x8 in float32.
template <typename T>
LEGOKV_DEVICE void multiply_accumulate(float (&sum)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2]);

template <>
LEGOKV_DEVICE void multiply_accumulate<bfloat16>(float (&sum)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2]) {
  LEGOKV_MMA("bf16.bf16");
}

template <>
LEGOKV_DEVICE void multiply_accumulate<float16>(float (&sum)[4], const uint32_t (&a)[4],
                                                const uint32_t (&b)[2]) {
  LEGOKV_MMA("f16.f16");
}

#undef LEGOKV_MMA

// More shared memory than a kernel may have without asking.
constexpr int kDefaultSharedBytes = 48 * 1024;

template <typename Argument>
Status launch(void (*kernel)(Argument), const LaunchShape& shape, void* stream,
              const Argument& argument) {
  cudaError_t error = cudaSuccess;
  if (shape.shared_bytes > kDefaultSharedBytes) {
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes);
  }
  if (error != cudaSuccess) {
    (void)cudaGetLastError();  // Else the next launch would report it as its own.
  } else {
    const dim3 grid(static_cast<unsigned>(shape.grid_x), shape.grid_y, shape.grid_z);
    kernel<<<grid, shape.threads, shape.shared_bytes, static_cast<cudaStream_t>(stream)>>>(
        argument);
    error = cudaGetLastError();
  }
  return error == cudaSuccess ? Status::kOk : cuda_error(cudaGetErrorString(error));
}

}  // namespace legokv::device
