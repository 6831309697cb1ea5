// C functions by which a test sets how the host form runs.
#include "host/block.h"
#include "legokv/export.h"

// 0 ascending, 1 descending, 2 shuffled.
LEGOKV_EXPORT void legokv_host_set_order(int order) {
  legokv::host::set_order(static_cast<legokv::host::Order>(order));
}

LEGOKV_EXPORT void legokv_host_skip_block_barrier(int ordinal) {
  legokv::host::skip_block_barrier(ordinal);
}

LEGOKV_EXPORT void legokv_host_skip_warp_barrier(int ordinal) {
  legokv::host::skip_warp_barrier(ordinal);
}

LEGOKV_EXPORT int64_t legokv_host_take_num_copies() { return legokv::host::take_num_copies(); }
