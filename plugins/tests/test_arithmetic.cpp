// Index, page-table, query-tile, rotation and number arithmetic, as g++ compiles it.
#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"
#include "legokv/numbers.h"
#include "legokv/page_table.h"
#include "legokv/pool_layout.h"
#include "legokv/query_rows.h"
#include "legokv/rotation.h"
#include "legolink_attention/plan.h"

namespace legokv {
namespace {

void a_key_s_offset_is_that_of_a_contiguous_pool() {
  const PoolLayout layout = {16, 3, 64};
  int64_t offset = 0;
  for (int page = 0; page < 3; ++page) {
    for (int kind = 0; kind < 2; ++kind) {
      for (int slot = 0; slot < 16; ++slot) {
        for (int head = 0; head < 3; ++head, offset += 64) {
          const int64_t key = key_offset(layout, page, slot, head);
          EXPECT_EQUAL(kind == 0 ? key : key + value_distance(layout), offset);
        }
      }
    }
  }
}

void offsets_go_on_past_two_to_the_thirty_one() {
  const PoolLayout layout = {16, 8, 128};
  // A page is 2 * 16 * 8 * 128 = 2^15 elements.
  EXPECT_EQUAL(key_offset(layout, 65536, 0, 0), int64_t{1} << 31);
  EXPECT_EQUAL(key_offset(layout, 1000000, 15, 7), int64_t{1000000} * 32768 + 15 * 1024 + 7 * 128);
  const SlotPlace last = slot_place(layout, INT32_MAX);
  EXPECT_EQUAL(last.page, int64_t{134217727});
  EXPECT_EQUAL(last.slot, 15);
  EXPECT_EQUAL(key_offset(layout, last.page, last.slot, 0), int64_t{134217727} * 32768 + 15 * 1024);
}

void strips_cover_the_filled_slots_and_no_others() {
  const PageRow rows[] = {{7, 100, 132, 33}, {9, 0, 0, 0}, {2, 5, 5, 64}};
  int covered[3] = {};
  for (int index = 0; index < 12; ++index) {
    const KeyStrip strip = strip_at(rows, 10, 4, index);
    const PageRow& row = rows[index / 4];
    covered[index / 4] += strip.num_keys;
    EXPECT_EQUAL(strip.page, row.page);
    EXPECT_EQUAL(strip.base, row.base);
    EXPECT_EQUAL(strip.first_position - row.first_position, strip.first_slot);
  }
  EXPECT_EQUAL(covered[0], 33);
  EXPECT_EQUAL(covered[1], 0);
  EXPECT_EQUAL(covered[2], 64);
}

void tables_of_nonsense_lead_nowhere() {
  const PageRow rows[] = {{-1, 0, 0, 64}, {10, 0, 0, 64}, {2147483647, 0, 0, 64}, {9, 0, 0, 1000}};
  int covered[4] = {};
  for (int index = 0; index < 16; ++index) {
    const KeyStrip strip = strip_at(rows, 10, 4, index);
    covered[index / 4] += strip.num_keys;
    if (strip.num_keys > 0) EXPECT_EQUAL(strip.first_slot + strip.num_keys <= 64, true);
  }
  EXPECT_EQUAL(covered[0] + covered[1] + covered[2], 0);
  EXPECT_EQUAL(covered[3], 64);

  const int32_t starts[][4] = {{7, -5, 900, 3}, {-9, -9, -9, -9}, {5, 4, 3, 2}, {900, 0, 900, 1}};
  for (const auto& query_start : starts) {
    const Sequences sequences = {query_start, 3, 5};
    for (int token = 0; token < 5; ++token) {
      const int b = sequence_of_token(sequences, token);
      EXPECT_EQUAL(b >= 0 && b <= 3, true);
    }
    for (int64_t tile = 0; tile < max_tiles(5, 3, 3, 4); ++tile) {
      const QueryTile found = query_tile(sequences, tile, 3, 4);
      if (found.num_rows == 0) continue;
      EXPECT_EQUAL(found.token >= 0 && found.first_row >= 0, true);
      EXPECT_EQUAL(found.token * 3 + found.first_row + found.num_rows <= 15, true);
    }
  }
}

void a_strip_is_seen_up_to_the_query() {
  const KeyStrip strip = {0, 0, 40, 8, 3};
  EXPECT_EQUAL(num_seen_keys(strip, INT32_MIN), 0);
  EXPECT_EQUAL(num_seen_keys(strip, 39), 0);
  EXPECT_EQUAL(num_seen_keys(strip, 40), 1);
  EXPECT_EQUAL(num_seen_keys(strip, 42), 3);
  EXPECT_EQUAL(num_seen_keys(strip, 1000), 3);
  EXPECT_EQUAL(num_seen_keys(KeyStrip{}, 40), 0);
}

void rows_that_are_seen_are_counted_up_to_the_first_that_is_not() {
  const PageRow rows[] = {{0, 0, 0, 16}, {1, 0, 16, 16}, {2, 0, 32, 3}, {0, 0, 0, 0}, {}};
  EXPECT_EQUAL(num_leading_rows(rows, 5, 100), 3);
  EXPECT_EQUAL(num_leading_rows(rows, 5, 32), 3);
  EXPECT_EQUAL(num_leading_rows(rows, 5, 31), 2);
  EXPECT_EQUAL(num_leading_rows(rows, 5, 0), 1);
  EXPECT_EQUAL(num_leading_rows(rows, 5, -1), 0);
  EXPECT_EQUAL(num_leading_rows(rows, 3, 100), 3);
  EXPECT_EQUAL(num_leading_rows(rows, 0, 100), 0);
  const PageRow holes[] = {{}, {1, 0, 0, 1}, {}, {1, 0, 0, 1}, {-7, 0, 0, -3}};
  const int number = num_leading_rows(holes, 5, 9);
  EXPECT_EQUAL(number >= 0 && number <= 5, true);
}

void parts_of_a_table_meet_without_gap_or_overlap() {
  for (const int total : {0, 1, 5, 31, 64, 2000000000}) {
    for (const int parts : {1, 3, 32, 128}) {
      EXPECT_EQUAL(part_begin(total, 0, parts), 0);
      EXPECT_EQUAL(part_begin(total, parts, parts), total);
      for (int part = 0; part < parts; ++part) {
        EXPECT_EQUAL(part_begin(total, part, parts) <= part_begin(total, part + 1, parts), true);
      }
    }
  }
}

void every_token_finds_its_own_sequence_among_empty_ones() {
  const int32_t start[] = {0, 0, 3, 3, 4, 9, 9};
  const Sequences sequences = {start, 6, 11};
  const int expected[] = {1, 1, 1, 3, 4, 4, 4, 4, 4, 6, 6};  // 6: after the last sequence
  for (int token = 0; token < 11; ++token) {
    EXPECT_EQUAL(sequence_of_token(sequences, token), expected[token]);
  }
}

// Counts how often each row of each token is in a tile; every row must be in exactly one.
void expect_rows_covered_once(const std::vector<int32_t>& start, int num_tokens, int rows_per_token,
                              int tile_rows) {
  const int num_sequences = static_cast<int>(start.size()) - 1;
  const Sequences sequences = {start.data(), num_sequences, num_tokens};
  std::vector<int> covered(num_tokens * rows_per_token);
  const int64_t tiles = max_tiles(num_tokens, num_sequences, rows_per_token, tile_rows);
  for (int64_t number = 0; number < tiles; ++number) {
    const QueryTile tile = query_tile(sequences, number, rows_per_token, tile_rows);
    for (int row = tile.first_row; row < tile.first_row + tile.num_rows; ++row) {
      const int token = tile.token + row / rows_per_token;
      EXPECT_EQUAL(sequence_of_token(sequences, token), tile.sequence);
      ++covered[token * rows_per_token + row % rows_per_token];
    }
  }
  for (const int times : covered) EXPECT_EQUAL(times, 1);
}

void tiles_cover_every_query_row_once() {
  for (const int rows_per_token : {1, 3, 4, 7, 65}) {
    for (const int tile_rows : {4, 16, 64, kTileRows}) {
      expect_rows_covered_once({0, 1, 1, 6, 70, 70}, 70, rows_per_token, tile_rows);
      expect_rows_covered_once({0, 0, 0, 5}, 9, rows_per_token, tile_rows);
      expect_rows_covered_once({0, 64, 128, 129}, 129, rows_per_token, tile_rows);
      expect_rows_covered_once({0}, 3, rows_per_token, tile_rows);
    }
  }
}

void rotations_add_up() {
  for (const int position : {0, 1, 17, 8191, 100000}) {
    for (const float inv_freq : {1.0f, 0.25f, 0.0009765625f}) {  // exact products
      const Pair once = rotate(rotation_by(position, inv_freq), {0.5f, -2.0f});
      const Pair back = rotate(rotation_by(-position, inv_freq), once);
      EXPECT_NEAR(
          once.first,
          0.5 * std::cos(position * double{inv_freq}) + 2.0 * std::sin(position * double{inv_freq}),
          1e-6);
      EXPECT_NEAR(back.first, 0.5, 1e-6);
      EXPECT_NEAR(back.second, -2.0, 1e-6);
    }
  }
}

void a_quick_rotation_is_the_exact_one_to_what_sixteen_bits_keep() {
  for (const float inv_freq : {1.0f, 0.7498942f, 0.01f, 0.0001154782f}) {
    for (int position = -1000000; position <= 1000000; position += 997) {
      const float angle = static_cast<float>(position) * inv_freq, rest = within_a_turn(angle);
      EXPECT_EQUAL(std::abs(rest) < 3.2f, true);
      const Rotation quick = quick_rotation_by(position, inv_freq);
      EXPECT_NEAR(quick.cosine, std::cos(double{angle}), 1e-6);
      EXPECT_NEAR(quick.sine, std::sin(double{angle}), 1e-6);
    }
  }
}

// Rounding of a value is right if no neighbouring 16-bit number is nearer, and ties go to even
// bits.
template <typename T>
void expect_nearest(float value) {
  const T rounded = from_float<T>(value);
  const double distance = std::abs(double{to_float(rounded)} - value);
  for (const int step : {-1, 1}) {
    const T neighbour = {static_cast<uint16_t>(rounded.bits + step)};
    if (!std::isfinite(to_float(neighbour))) continue;
    const double other = std::abs(double{to_float(neighbour)} - value);
    EXPECT_EQUAL(distance < other || (distance == other && rounded.bits % 2 == 0), true);
  }
}

template <typename T>
void expect_every_number_to_survive(uint16_t largest_finite) {
  for (int bits = 0; bits <= largest_finite; ++bits) {
    const T number = {static_cast<uint16_t>(bits)};
    const T negative = {static_cast<uint16_t>(bits | 0x8000)};
    EXPECT_EQUAL(from_float<T>(to_float(number)).bits, number.bits);
    EXPECT_EQUAL(from_float<T>(to_float(negative)).bits, negative.bits);
    if (bits == 0 || bits == largest_finite) continue;
    const T next = {static_cast<uint16_t>(bits + 1)};
    const float middle = to_float(number) / 2 + to_float(next) / 2;
    expect_nearest<T>(middle);
    expect_nearest<T>(std::nextafter(middle, 0.0f));
    expect_nearest<T>(std::nextafter(middle, INFINITY));
  }
}

void sixteen_bit_floats_round_to_nearest_even() {
  expect_every_number_to_survive<bfloat16>(0x7f7f);
  expect_every_number_to_survive<float16>(0x7bff);
  EXPECT_EQUAL(from_float<float16>(65519.0f).bits, uint16_t{0x7bff});
  EXPECT_EQUAL(from_float<float16>(65520.0f).bits, uint16_t{0x7c00});
  EXPECT_EQUAL(from_float<float16>(-INFINITY).bits, uint16_t{0xfc00});
  EXPECT_EQUAL(std::isnan(to_float(from_float<float16>(NAN))), true);
  EXPECT_EQUAL(std::isnan(to_float(from_float<bfloat16>(NAN))), true);
  EXPECT_EQUAL(std::isinf(to_float(from_float<bfloat16>(3.4e38f))), true);
}

LegokvLegolinkAttention llama_8b(int num_tokens, int num_sequences) {
  LegokvLegolinkAttention a = {};
  a.num_tokens = num_tokens;
  a.num_sequences = num_sequences;
  a.num_table_rows = 512;
  a.num_heads = 32;
  a.num_kv_heads = 8;
  a.head_size = 128;
  a.page_size = 16;
  a.dtype = LEGOKV_BFLOAT16;
  return a;
}

void few_rows_are_split_over_keys_and_many_are_tiled() {
  const AttentionPlan decode = plan_attention(llama_8b(1, 1)).parts[0];
  EXPECT_EQUAL(decode.regime, int{LEGOKV_SPLIT});
  EXPECT_EQUAL(decode.num_splits, 32);
  const AttentionPlan link = plan_attention(llama_8b(144, 1)).parts[0];
  EXPECT_EQUAL(link.regime, int{LEGOKV_TILED});
  EXPECT_EQUAL(link.num_splits, 7);  // of 8 heads and 5 tiles
  const AttentionPlan compile = plan_attention(llama_8b(4096, 1)).parts[0];
  EXPECT_EQUAL(compile.regime, int{LEGOKV_TILED});
  EXPECT_EQUAL(compile.num_splits, 1);
  EXPECT_EQUAL(plan_attention(llama_8b(64, 64)).num_parts, 1);
}

void a_mixed_step_has_a_part_for_few_rows_and_one_for_many() {
  const AttentionPlans beside_a_chunk = plan_attention(llama_8b(513, 2));
  EXPECT_EQUAL(beside_a_chunk.num_parts, 2);
  EXPECT_EQUAL(beside_a_chunk.parts[0].regime, int{LEGOKV_SPLIT});
  EXPECT_EQUAL(beside_a_chunk.parts[0].few_tokens, 3);
  EXPECT_EQUAL(beside_a_chunk.parts[0].num_splits, 32);
  EXPECT_EQUAL(beside_a_chunk.parts[1].regime, int{LEGOKV_TILED});
  EXPECT_EQUAL(beside_a_chunk.parts[1].num_splits, 2);
  const AttentionPlans beside_many = plan_attention(llama_8b(223, 64));
  EXPECT_EQUAL(beside_many.parts[0].num_splits, 1);
  EXPECT_EQUAL(beside_many.parts[1].regime, int{LEGOKV_TILED});
}

void no_call_needs_more_workspace_than_the_bound() {
  const int64_t bound = max_workspace_bytes(llama_8b(512, 64));
  for (int tokens = 1; tokens <= 512; ++tokens) {
    for (const int sequences : {1, 2, 8, 64}) {
      EXPECT_EQUAL(workspace_bytes(llama_8b(tokens, sequences)) <= bound, true);
    }
  }
  EXPECT_EQUAL(bound < (int64_t{1} << 28), true);
}

}  // namespace
}  // namespace legokv

int main() {
  using namespace legokv;
  RUN(a_key_s_offset_is_that_of_a_contiguous_pool);
  RUN(offsets_go_on_past_two_to_the_thirty_one);
  RUN(strips_cover_the_filled_slots_and_no_others);
  RUN(tables_of_nonsense_lead_nowhere);
  RUN(a_strip_is_seen_up_to_the_query);
  RUN(rows_that_are_seen_are_counted_up_to_the_first_that_is_not);
  RUN(parts_of_a_table_meet_without_gap_or_overlap);
  RUN(every_token_finds_its_own_sequence_among_empty_ones);
  RUN(tiles_cover_every_query_row_once);
  RUN(rotations_add_up);
  RUN(a_quick_rotation_is_the_exact_one_to_what_sixteen_bits_keep);
  RUN(sixteen_bit_floats_round_to_nearest_even);
  RUN(few_rows_are_split_over_keys_and_many_are_tiled);
  RUN(a_mixed_step_has_a_part_for_few_rows_and_one_for_many);
  RUN(no_call_needs_more_workspace_than_the_bound);
}
