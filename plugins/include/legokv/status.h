// How a launch says what went wrong: a code, and a sentence kept for the calling thread.
#pragma once

#include "legokv/launchers.h"

namespace legokv {

enum class [[nodiscard]] Status : int {
  kOk = LEGOKV_OK,
  kInvalidArgument = LEGOKV_INVALID_ARGUMENT,
  kCudaError = LEGOKV_CUDA_ERROR,
};

// Records the sentence, written as for printf, and returns kInvalidArgument.
__attribute__((format(printf, 1, 2))) Status invalid_argument(const char* format, ...);

// Records CUDA's own words and returns kCudaError.
Status cuda_error(const char* message);

// The last recorded sentence of this thread.
const char* last_error();

}  // namespace legokv
