// The host form itself: what its barriers, warp operations and copies do, and what it refuses.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <vector>

#include "check.h"
#include "legokv/device.h"
#include "legolink_attention/strip_list.cuh"

namespace legokv {
namespace {

struct Output {
  float* numbers;
  int variant;
};

constexpr LaunchShape kOneWarp = {1, 1, 1, 32, 4096};
constexpr LaunchShape kTwoWarps = {3, 2, 1, 64, 64 * sizeof(float)};

void reverse_block(Output out) {
  float* shared = reinterpret_cast<float*>(device::shared_memory());
  const int thread = device::thread_index();
  shared[thread] = static_cast<float>(thread);
  device::sync_block();
  const int64_t block = device::block_y() * 3 + device::block_x();
  out.numbers[block * 64 + thread] = shared[63 - thread];
}

void a_block_barrier_shows_other_threads_writes_in_every_order() {
  for (const int order : {0, 1, 2}) {
    host::set_order(static_cast<host::Order>(order));
    float numbers[6 * 64] = {};
    EXPECT_EQUAL(
        device::launch(reverse_block, kTwoWarps, nullptr, Output{numbers, 0}) == Status::kOk, true);
    for (int i = 0; i < 6 * 64; ++i) EXPECT_EQUAL(numbers[i], float(63 - i % 64));
  }
  host::set_order(host::Order::kAscending);
}

void a_missing_barrier_reads_what_nobody_wrote() {
  host::skip_block_barrier(0);
  float numbers[6 * 64] = {};
  EXPECT_EQUAL(device::launch(reverse_block, kTwoWarps, nullptr, Output{numbers, 0}) == Status::kOk,
               true);
  host::skip_block_barrier(-1);
  EXPECT_EQUAL(std::isnan(numbers[0]), true);
}

void sum_and_ballot(Output out) {
  float sum = static_cast<float>(device::thread_index());
  for (int mask = 16; mask > 0; mask /= 2) sum += device::shuffle_xor(sum, mask);
  const uint32_t odd = device::ballot(device::thread_index() % 2 == 1);
  out.numbers[device::thread_index()] = sum + static_cast<float>(odd == 0xaaaaaaaau);
}

void shuffles_and_ballots_see_all_lanes() {
  float numbers[32] = {};
  EXPECT_EQUAL(device::launch(sum_and_ballot, kOneWarp, nullptr, Output{numbers, 0}) == Status::kOk,
               true);
  for (const float number : numbers) EXPECT_EQUAL(number, 497.0f);
}

// Multiplies a 16x16 by a 16x8 matrix of small whole numbers, both loaded as ldmatrix loads them.
void multiply(Output out) {
  auto* a = reinterpret_cast<bfloat16(*)[16]>(device::shared_memory());
  auto* b = a + 16;  // [inner][column], columns 8 ... 15 unused
  const int lane = device::thread_index();
  for (int i = lane; i < 256; i += 32) {
    a[i / 16][i % 16] = from_float<bfloat16>(static_cast<float>(i % 7 - 3));
    b[i / 16][i % 16] = from_float<bfloat16>(static_cast<float>(i % 5 - 2));
  }
  device::sync_warp();
  uint32_t of_a[4], of_b[4];
  device::load_matrices(of_a, &a[lane % 16][lane / 16 * 8]);
  device::load_matrices_transposed(of_b, &b[lane % 16][lane / 16 * 8]);
  float sum[4] = {};
  const uint32_t left_columns[2] = {of_b[0], of_b[1]};
  device::multiply_accumulate<bfloat16>(sum, of_a, left_columns);
  for (int i = 0; i < 4; ++i) {
    out.numbers[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
  }
}

void a_tensor_core_product_is_the_matrix_product() {
  float numbers[128] = {};
  EXPECT_EQUAL(device::launch(multiply, kOneWarp, nullptr, Output{numbers, 0}) == Status::kOk,
               true);
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      int expected = 0;
      for (int inner = 0; inner < 16; ++inner) {
        expected += ((row * 16 + inner) % 7 - 3) * ((inner * 16 + column) % 5 - 2);
      }
      EXPECT_EQUAL(numbers[row * 8 + column], float(expected));
    }
  }
}

// Of the 8x8 matrix 0, 1, 2 ...; a lane's two numbers go where they stand in the transposed one.
void transpose_matrix(Output out) {
  const int lane = device::thread_index(), place = lane / 4 * 8 + lane % 4 * 2;
  const uint32_t pair = device::transpose(
      pack_pair<bfloat16>(static_cast<float>(place), static_cast<float>(place + 1)));
  out.numbers[place] = low_of_pair<bfloat16>(pair);
  out.numbers[place + 1] = high_of_pair<bfloat16>(pair);
}

void a_matrix_of_a_warp_is_transposed() {
  float numbers[64] = {};
  EXPECT_EQUAL(
      device::launch(transpose_matrix, kOneWarp, nullptr, Output{numbers, 0}) == Status::kOk, true);
  for (int i = 0; i < 64; ++i) EXPECT_EQUAL(numbers[i], static_cast<float>(i % 8 * 8 + i / 8));
}

void copy_late(Output out) {
  alignas(16) static const float source[4] = {1, 2, 3, 4};
  float* shared = reinterpret_cast<float*>(device::shared_memory());
  if (device::thread_index() != 0) return;
  device::copy_async_16(shared, source, true);
  device::commit_copies();
  device::copy_async_16(shared + 4, source, false);
  device::commit_copies();
  out.numbers[0] = shared[0];
  device::wait_copies<1>();
  out.numbers[1] = shared[0];
  out.numbers[2] = shared[4];
  device::wait_copies<0>();
  out.numbers[3] = shared[4];
}

void a_copy_arrives_when_it_is_waited_for_and_not_before() {
  float numbers[4] = {};
  EXPECT_EQUAL(device::launch(copy_late, kOneWarp, nullptr, Output{numbers, 0}) == Status::kOk,
               true);
  EXPECT_EQUAL(std::isnan(numbers[0]), true);
  EXPECT_EQUAL(numbers[1], 1.0f);
  EXPECT_EQUAL(std::isnan(numbers[2]), true);
  EXPECT_EQUAL(numbers[3], 0.0f);
}

struct Walk {
  LegokvLegolinkAttention arguments;
  int part;
  int num_parts;
  int* taken;  // strips by their page, or by their base, which is the same here, then -1
};

void walk_part(Walk walk) {
  StripWalk strips = walk_strips(walk.arguments, 0, 1000, walk.part, walk.num_parts);
  KeyStrip strip;
  while (strips.take(&strip)) {
    if (device::thread_index() == 0) *walk.taken++ = strip.page;
  }
  if (device::thread_index() == 0) *walk.taken = -1;
}

// As a block takes them: some at a time, from a list that goes round.
void list_part(Walk walk) {
  constexpr int kStrips = 4;
  auto& list = *reinterpret_cast<StripList*>(device::shared_memory());
  StripLister<float, kStrips> lister = {
      walk.arguments, 0, walk_strips(walk.arguments, 0, 1000, walk.part, walk.num_parts), &list};
  bool goes_on = true;
  for (int first = 0; goes_on; first += kStrips - 1) {
    lister.list_until(first + 2 * kStrips);
    device::sync_warp();
    for (int i = first; i < first + kStrips - 1 && goes_on; ++i) {
      goes_on = list.at(i).num_keys > 0;
      if (device::thread_index() == 0) *walk.taken++ = goes_on ? list.at(i).base : -1;
    }
    device::sync_warp();
  }
}

// The pages of one-strip rows that a query at position 1000 comes to in one part of `rows`.
std::vector<int> pages_of_part(const std::vector<PageRow>& rows, int part, int num_parts,
                               void (*take)(Walk) = walk_part) {
  LegokvLegolinkAttention arguments = {};
  arguments.pages = reinterpret_cast<const int32_t*>(rows.data());
  arguments.num_sequences = 1;
  arguments.num_table_rows = static_cast<int>(rows.size());
  arguments.num_pool_pages = 190;
  arguments.page_size = kStripKeys;
  std::vector<int> taken(rows.size() + 1);
  const Walk walk = {arguments, part, num_parts, taken.data()};
  EXPECT_EQUAL(device::launch(take, kOneWarp, nullptr, walk) == Status::kOk, true);
  taken.resize(std::find(taken.begin(), taken.end(), -1) - taken.begin());
  return taken;
}

// 200 rows, seen and unseen in turn, 32 in a row unseen, the last 10 outside the pool.
void the_parts_of_a_walk_take_every_seen_strip_once_and_each_in_order() {
  std::vector<PageRow> rows(200);
  for (int i = 0; i < 200; ++i) rows[i] = {i, i, i % 3 == 1 ? 1001 : 1000, i % 3 == 2 ? 0 : 1};
  for (int i = 132; i < 164; ++i) rows[i].filled = 0;
  for (const int num_parts : {1, 2, 7, 190}) {
    std::vector<int> taken;
    for (int part = 0; part < num_parts; ++part) {
      const std::vector<int> pages = pages_of_part(rows, part, num_parts);
      EXPECT_EQUAL(std::is_sorted(pages.begin(), pages.end()), true);
      EXPECT_EQUAL(pages_of_part(rows, part, num_parts, list_part) == pages, true);
      taken.insert(taken.end(), pages.begin(), pages.end());
    }
    std::sort(taken.begin(), taken.end());
    auto next = taken.begin();
    for (int i = 0; i < 190; ++i) {
      if (i % 3 == 0 && (i < 132 || i >= 164)) EXPECT_EQUAL(*next++, i);
    }
    EXPECT_EQUAL(next == taken.end(), true);
  }
}

// Rows without a page behind, as a plan's padded tables have them, or rows past the query, as the
// first tiles of a chunk have them.
void each_part_of_a_walk_has_its_share_of_what_is_seen() {
  for (const PageRow behind : {PageRow{0, 0, 0, 0}, PageRow{150, 0, 1001, 16}}) {
    std::vector<PageRow> rows(128, behind);
    for (int i = 0; i < 66; ++i) rows[i] = {i, i, i, 1};
    for (int part = 0; part < 8; ++part) {
      const std::vector<int> pages = pages_of_part(rows, part, 8);
      EXPECT_EQUAL(pages.size() == 8 || pages.size() == 9, true);
    }
  }
}

// Faults a GPU would hang on or answer with nonsense.
void commit_fault(Output out) {
  const bool first = device::thread_index() == 0;
  if (out.variant == 0 && first) return device::sync_block();
  if (out.variant == 1) {
    if (first) return device::sync_warp();
    device::ballot(true);
  }
  if (out.variant == 2) device::copy_async_16(device::shared_memory() + 4, out.numbers, true);
}

void a_fault_ends_the_process() {
  for (const int variant : {0, 1, 2}) {
    const pid_t child = fork();
    if (child == 0) {
      if (freopen("/dev/null", "w", stderr) == nullptr) _exit(2);
      alignas(16) float numbers[4] = {};
      _exit(static_cast<int>(
          device::launch(commit_fault, kOneWarp, nullptr, Output{numbers, variant})));
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQUAL(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, true);
  }
}

}  // namespace
}  // namespace legokv

int main() {
  using namespace legokv;
  RUN(a_block_barrier_shows_other_threads_writes_in_every_order);
  RUN(a_missing_barrier_reads_what_nobody_wrote);
  RUN(shuffles_and_ballots_see_all_lanes);
  RUN(a_tensor_core_product_is_the_matrix_product);
  RUN(a_matrix_of_a_warp_is_transposed);
  RUN(a_copy_arrives_when_it_is_waited_for_and_not_before);
  RUN(the_parts_of_a_walk_take_every_seen_strip_once_and_each_in_order);
  RUN(each_part_of_a_walk_has_its_share_of_what_is_seen);
  RUN(a_fault_ends_the_process);
}
