#include "legokv/device.h"
#include "legokv/dtype.h"
#include "legolink_attention/attention_shape.h"
#include "legolink_attention/kernels.h"
#include "legolink_attention/results.cuh"

namespace legokv {
namespace {

constexpr int kThreads = 128;

// The row of `out` seen as [T * H, D] that partial results are of; -1 if they are no part's.
LEGOKV_DEVICE int64_t out_row(const AttentionCall& call, int64_t row) {
  const LegokvLegolinkAttention& a = call.arguments;
  const int few = call.plan.few_tokens;
  if (few == 0) return row;
  const int64_t place = row / a.num_heads;
  if (call.plan.regime == LEGOKV_SPLIT) {
    const int token = token_at_place(sequences(a), place, few);
    return token < 0 ? -1 : token * int64_t{a.num_heads} + row % a.num_heads;
  }
  const int sequence = sequence_of_token(sequences(a), static_cast<int>(place));
  return has_few_tokens(sequences(a), sequence, few) ? -1 : row;
}

// What shared tiles left of a row: its own part of all partial results.
struct SharedRow {
  Partials all;
  int first_place;
  int end_place;
  int head;
};

// `row` of `out`. None outside the places, whatever the list says. Rows have 32 bits.
LEGOKV_DEVICE SharedRow shared_row(const AttentionCall& call, int64_t row) {
  const LegokvLegolinkAttention& a = call.arguments;
  const uint32_t number = static_cast<uint32_t>(row), heads = static_cast<uint32_t>(a.num_heads);
  const int first = a.shared_start[number / heads], end = a.shared_start[number / heads + 1];
  return {shared_partials(call), first < 0 ? 0 : first,
          end < a.num_shared_members ? end : a.num_shared_members,
          static_cast<int>(number % heads)};
}

// A row of partial results that comes to the others, for one dimension of it.
struct Combined {
  float max = -INFINITY;
  float sum = 0;
  float value = 0;

  // A part that saw no key has sum 0 and maximum -infinity: it weighs nothing.
  LEGOKV_DEVICE void add(const Partials& all, int64_t place, int64_t item) {
    if (all.sums[place] == 0) return;
    const float weight = device::exp2(all.maxima[place] - max);
    sum += all.sums[place] * weight;
    value += all.values[item] * weight;
  }
};

// One thread puts together one dimension of one query row: its splits and, where some of its keys
// were shared, what the tiles left of it. If none saw any key the result is 0.
template <typename T, bool kShared>
LEGOKV_KERNEL(kThreads)
combine_splits_kernel(LEGOKV_PARAMETER AttentionCall call) {
  const Partials all = partials(call);
  const int head_size = call.arguments.head_size, num_heads = call.arguments.num_heads;
  const int64_t item = device::block_x() * kThreads + device::thread_index();
  if (item >= all.num_rows * head_size) return;
  const int64_t row = item / head_size, result = out_row(call, row);
  if (result < 0) return;
  SharedRow shared = {};
  if constexpr (kShared) shared = shared_row(call, result);

  Combined combined;
  for (int split = 0; split < call.plan.num_splits; ++split) {
    combined.max = fmaxf(combined.max, all.maxima[split * all.num_rows + row]);
  }
  for (int place = shared.first_place; place < shared.end_place; ++place) {
    const int64_t at = int64_t{place} * num_heads + shared.head;
    combined.max = fmaxf(combined.max, shared.all.maxima[at]);
  }
  for (int split = 0; split < call.plan.num_splits; ++split) {
    combined.add(all, split * all.num_rows + row, split * all.num_rows * head_size + item);
  }
  for (int place = shared.first_place; place < shared.end_place; ++place) {
    const int64_t at = int64_t{place} * num_heads + shared.head;
    combined.add(shared.all, at, at * head_size + item % head_size);
  }
  T* out = static_cast<T*>(call.arguments.out) + result * head_size + item % head_size;
  *out = from_float<T>(combined.value * normalizer(combined.sum));
}

template <typename T, bool kShared>
Status launch(const AttentionCall& call, void* stream) {
  const int64_t items = partial_rows(call.arguments, call.plan) * call.arguments.head_size;
  const LaunchShape shape = {(items + kThreads - 1) / kThreads, 1, 1, kThreads, 0};
  return device::launch(combine_splits_kernel<T, kShared>, shape, stream, call);
}

}  // namespace

Status launch_combine_splits(const AttentionCall& call, void* stream) {
  const LegokvLegolinkAttention& a = call.arguments;
  if (shares(a) && call.plan.regime == LEGOKV_SPLIT) {
    return a.dtype == LEGOKV_FLOAT16 ? launch<float16, true>(call, stream)
                                     : launch<bfloat16, true>(call, stream);
  }
  return with_dtype(a.dtype,
                    [&](auto number) { return launch<decltype(number), false>(call, stream); });
}

}  // namespace legokv
