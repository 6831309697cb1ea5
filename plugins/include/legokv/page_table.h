// Rows of a page table, and which of a page's keys a query sees.
#pragma once

#include <cstdint>

#include "legokv/host_device.h"

namespace legokv {

// One row of `pages` [B, P, 4], read in one 16-byte load.
struct alignas(16) PageRow {
  int32_t page;
  int32_t base;            // absolute position of the chunk's first token
  int32_t first_position;  // absolute position of slot 0
  int32_t filled;          // slots that hold a key; 0: no page
};

LEGOKV_HOST_DEVICE bool sees(int query_position, int key_position) {
  return key_position <= query_position;
}

// How many of a row's slots may be read, whatever the row says: none of a page outside the pool.
LEGOKV_HOST_DEVICE int filled_slots(const PageRow& row, int64_t num_pool_pages, int page_size) {
  if (row.page < 0 || row.page >= num_pool_pages) return 0;
  return row.filled < page_size ? row.filled : page_size;
}

// Keys are walked in strips: 16 neighbouring slots of one page. A page size is a multiple of it.
constexpr int kStripKeys = 16;

struct KeyStrip {
  int32_t page;
  int32_t base;
  int32_t first_position;  // absolute position of the strip's first key
  int32_t first_slot;
  int32_t num_keys;  // 1 ... kStripKeys; 0: no strip
};

// Strip `index` of a sequence's table, counted through the rows; num_keys is 0 past the filled
// slots.
LEGOKV_HOST_DEVICE KeyStrip strip_at(const PageRow* rows, int64_t num_pool_pages,
                                     int strips_per_page, int index) {
  // A page has 1, 2 or 4 strips: their halves are the logarithms, and no number is divided.
  const PageRow row = rows[index >> (strips_per_page >> 1)];
  const int first_slot = (index & (strips_per_page - 1)) * kStripKeys;
  const int left = filled_slots(row, num_pool_pages, strips_per_page * kStripKeys) - first_slot;
  const int num_keys = left < 0 ? 0 : (left > kStripKeys ? kStripKeys : left);
  return {row.page, row.base, row.first_position + first_slot, first_slot, num_keys};
}

// How many of the strip's keys, from the first on, a query sees.
LEGOKV_HOST_DEVICE int num_seen_keys(const KeyStrip& strip, int query_position) {
  if (!sees(query_position, strip.first_position)) return 0;
  const int until_query = query_position - strip.first_position + 1;
  return until_query < strip.num_keys ? until_query : strip.num_keys;
}

// How many rows stand before the first that the query sees nothing of, if all that it sees stand
// before all others, as in the tables of steps. In other tables it is some number of rows.
LEGOKV_HOST_DEVICE int num_leading_rows(const PageRow* rows, int num_rows, int query_position) {
  int low = 0, high = num_rows;
  while (low < high) {
    const int middle = (low + high) / 2;
    const PageRow row = rows[middle];
    if (row.filled > 0 && sees(query_position, row.first_position)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Where part `part` of `num_parts` begins when `total` items are dealt out evenly.
LEGOKV_HOST_DEVICE int part_begin(int total, int part, int num_parts) {
  return static_cast<int>(int64_t{total} * part / num_parts);
}

}  // namespace legokv
