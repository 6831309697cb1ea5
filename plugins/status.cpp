#include "legokv/status.h"

#include <cstdarg>
#include <cstdio>

namespace legokv {
namespace {

thread_local char message_of_thread[256] = "no call of this thread has failed";

}  // namespace

Status invalid_argument(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message_of_thread, sizeof message_of_thread, format, arguments);
  va_end(arguments);
  return Status::kInvalidArgument;
}

Status cuda_error(const char* message) {
  snprintf(message_of_thread, sizeof message_of_thread, "CUDA: %s", message);
  return Status::kCudaError;
}

const char* last_error() { return message_of_thread; }

}  // namespace legokv
