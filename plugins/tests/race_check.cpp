// Runs one kernel on a small ragged step under ThreadSanitizer, every thread of a block a thread to
// it.
//
//   race_check split|float-split|tiled|long-tiled|shared|reference [block|warp ORDINAL]
//
// With a second argument, that barrier of every thread does nothing. Exit status 66 and a report: a
// race was found. Status 0: none was.
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "host/block.h"
#include "legokv/launchers.h"
#include "legokv/numbers.h"
#include "legokv/page_table.h"
#include "legolink_attention/kernels.h"

namespace legokv {
namespace {

constexpr int kHeads = 4, kKvHeads = 2, kHeadSize = 64, kPageSize = 16;
constexpr int kChunkTokens = 27, kPagesPerChunk = 2;

// Two splits, whatever the shapes would suggest: long enough for every buffer to be used again.
struct Shape {
  int regime;
  int num_chunks = 12;
  int num_splits = 2;
};

// Tiles of more than one group of rows, and more strips than are listed at once.
constexpr Shape kLongTiled = {LEGOKV_TILED, 34, 1};

// Every chunk's last token is computed, in one sequence: tables of many strips and many bases.
template <typename T>
struct Step {
  std::vector<T> q, k, v, pool, out;
  std::vector<int32_t> positions, key_positions, slots, query_start;
  std::vector<PageRow> rows;
  std::vector<float> inv_freq;
  std::vector<float> workspace;
};

template <typename T>
std::vector<T> numbers(size_t count) {
  std::vector<T> made(count);
  for (size_t i = 0; i < count; ++i) made[i] = from_float<T>(float(i * 37 % 101) / 50 - 1);
  return made;
}

template <typename T>
Step<T> make_step(int num_chunks) {
  Step<T> step;
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    const int base = chunk * kChunkTokens, page = chunk * kPagesPerChunk;
    step.rows.push_back({page, base, base, kPageSize});
    step.rows.push_back({page + 1, base, base + kPageSize, kChunkTokens - kPageSize});
    step.positions.push_back(base + kChunkTokens - 1);
    step.key_positions.push_back(kChunkTokens - 1);
    step.slots.push_back(page * kPageSize + kChunkTokens - 1);
  }
  step.query_start = {0, num_chunks};
  step.q = numbers<T>(num_chunks * kHeads * kHeadSize);
  step.k = step.v = numbers<T>(num_chunks * kKvHeads * kHeadSize);
  step.pool = numbers<T>(num_chunks * kPagesPerChunk * 2 * kPageSize * kKvHeads * kHeadSize);
  step.out.resize(step.q.size());
  for (int i = 0; i < kHeadSize / 2; ++i) step.inv_freq.push_back(1.0f / float(i + 1));
  return step;
}

template <typename T>
LegokvLegolinkAttention arguments_of(Step<T>& step, int regime) {
  LegokvLegolinkAttention a = {};
  a.q = step.q.data();
  a.k = step.k.data();
  a.v = step.v.data();
  a.pool = step.pool.data();
  a.out = step.out.data();
  a.positions = step.positions.data();
  a.key_positions = step.key_positions.data();
  a.slots = step.slots.data();
  a.query_start = step.query_start.data();
  a.pages = reinterpret_cast<const int32_t*>(step.rows.data());
  a.inv_freq = step.inv_freq.data();
  a.num_pool_pages = a.num_table_rows = static_cast<int32_t>(step.rows.size());
  a.num_tokens = static_cast<int32_t>(step.positions.size());
  a.num_sequences = 1;
  a.num_heads = kHeads;
  a.num_kv_heads = kKvHeads;
  a.head_size = kHeadSize;
  a.page_size = kPageSize;
  a.q_stride = kHeads * kHeadSize;
  a.k_stride = a.v_stride = kKvHeads * kHeadSize;
  a.dtype = sizeof(T) == 4 ? LEGOKV_FLOAT32 : LEGOKV_BFLOAT16;
  a.regime = regime;
  a.scale = 0.125f;
  return a;
}

template <typename T>
Status run(const Shape& shape) {
  const int regime = shape.regime, num_splits = regime == LEGOKV_REFERENCE ? 1 : shape.num_splits;
  Step<T> step = make_step<T>(shape.num_chunks);
  AttentionCall call = {arguments_of(step, regime), {regime, num_splits, 0, num_splits > 1, 0}, 0};
  step.workspace.resize(2 * step.out.size() + 4 * shape.num_chunks * kHeads);
  call.arguments.workspace = step.workspace.data();
  Status status = launch_write_kv(call.arguments, nullptr);
  if (status != Status::kOk) return status;
  if (regime == LEGOKV_REFERENCE) return launch_attend_reference(call.arguments, nullptr);
  status = regime == LEGOKV_SPLIT ? launch_attend_split(call, nullptr)
                                  : launch_attend_tiled(call, nullptr);
  if (num_splits == 1 || status != Status::kOk) return status;
  return launch_combine_splits(call, nullptr);
}

// One tile of all tokens, as of sequences of their own, over the first page of each chunk.
Status run_shared() {
  Step<bfloat16> step = make_step<bfloat16>(kLongTiled.num_chunks);
  AttentionCall call = {arguments_of(step, LEGOKV_SPLIT), {LEGOKV_SPLIT, 1, 0, 1, 0}, 0};
  LegokvLegolinkAttention& a = call.arguments;
  std::vector<PageRow> pages, members;
  std::vector<int32_t> start = {0};
  for (int chunk = 0; chunk < a.num_tokens; ++chunk) {
    pages.push_back({chunk * kPagesPerChunk, 0, INT32_MIN / 2, kPageSize});
    members.push_back({chunk, chunk * kChunkTokens, chunk, 0});
    start.push_back(chunk + 1);
  }
  const PageRow tile = {0, a.num_tokens, 0, a.num_tokens};
  a.shared_tiles = reinterpret_cast<const int32_t*>(&tile);
  a.shared_members = reinterpret_cast<const int32_t*>(members.data());
  a.shared_pages = reinterpret_cast<const int32_t*>(pages.data());
  a.shared_start = start.data();
  a.num_shared_tiles = 1;
  a.num_shared_members = a.num_shared_pages = a.num_tokens;
  call.shared_floats = partial_rows(a, call.plan) * (kHeadSize + 2);
  step.workspace.resize(2 * call.shared_floats);
  a.workspace = step.workspace.data();
  Status status = launch_write_kv(a, nullptr);
  if (status == Status::kOk) status = launch_attend_shared(call, nullptr);
  if (status == Status::kOk) status = launch_attend_split(call, nullptr);
  return status == Status::kOk ? launch_combine_splits(call, nullptr) : status;
}

Status run_named(const std::string& name) {
  if (name == "float-split") return run<float>({LEGOKV_SPLIT});
  if (name == "split") return run<bfloat16>({LEGOKV_SPLIT});
  if (name == "shared") return run_shared();
  if (name == "long-tiled") return run<bfloat16>(kLongTiled);
  return run<bfloat16>({name == "tiled" ? LEGOKV_TILED : LEGOKV_REFERENCE});
}

}  // namespace
}  // namespace legokv

int main(int count, char** words) {
  if (count == 4) {
    const auto skip = strcmp(words[2], "block") == 0 ? legokv::host::skip_block_barrier
                                                     : legokv::host::skip_warp_barrier;
    skip(atoi(words[3]));
  }
  return count < 2 ? 2 : static_cast<int>(legokv::run_named(words[1]));
}
