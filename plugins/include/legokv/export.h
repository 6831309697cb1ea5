// Marks the few functions that are visible outside the library.
#pragma once

#define LEGOKV_EXPORT extern "C" __attribute__((visibility("default")))
