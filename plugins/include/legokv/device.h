// Everything a kernel uses beyond C++, in two forms behind one set of names (legokv::device).
//
// The CUDA form is what a GPU runs. The host form runs the same kernel source on a CPU, a block's
// threads as fibers, so that loops, masks, page walks and barriers are tested without a GPU.
// Blocks are one-dimensional, warps have 32 lanes, and every warp operation is done by all of them.
#pragma once

#ifdef __CUDACC__
#include "legokv/device_cuda.h"
#else
#include "legokv/device_host.h"
#endif
