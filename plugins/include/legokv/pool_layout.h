// Where a token's K or V lies in a pool [N, 2, S, G, D]. Element offsets, no pointers.
#pragma once

#include <cstdint>

#include "legokv/host_device.h"

namespace legokv {

struct PoolLayout {
  int page_size;
  int num_kv_heads;
  int head_size;
};

struct SlotPlace {
  int64_t page;
  int slot;
};

// Splits a number from `slots`, which is page * S + slot.
LEGOKV_HOST_DEVICE SlotPlace slot_place(const PoolLayout& layout, int32_t slot) {
  return {slot / layout.page_size, slot % layout.page_size};
}

LEGOKV_HOST_DEVICE int64_t token_stride(const PoolLayout& layout) {
  return int64_t{layout.num_kv_heads} * layout.head_size;
}

// int64 throughout: a pool passes 2^31 elements at 8 KV heads of 128 and 65,536 pages of 16.
LEGOKV_HOST_DEVICE int64_t key_offset(const PoolLayout& layout, int64_t page, int slot, int head) {
  return (page * 2 * layout.page_size + slot) * token_stride(layout) +
         int64_t{head} * layout.head_size;
}

// From a key to its own value.
LEGOKV_HOST_DEVICE int64_t value_distance(const PoolLayout& layout) {
  return layout.page_size * token_stride(layout);
}

}  // namespace legokv
