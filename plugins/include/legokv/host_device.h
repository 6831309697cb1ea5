// One word for functions that g++, nvcc's host pass and nvcc's device pass all compile.
#pragma once

#ifdef __CUDACC__
#define LEGOKV_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LEGOKV_HOST_DEVICE inline
#endif
