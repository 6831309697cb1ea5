// The four ops that attention's plugin is, what each has as inputs, and how q, k and v are found in
// the one input of the packed ones. Nothing of TensorRT.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>

#include "legokv/dtype.h"
#include "legokv/status.h"
#include "scored_attention/signature.h"

namespace legokv {

#define LEGOKV_ENUMERATOR(name) k_##name,
enum Input { SCORED_ATTENTION_INPUTS(LEGOKV_ENUMERATOR) kNumInputs };
enum Output { SCORED_ATTENTION_OUTPUTS(LEGOKV_ENUMERATOR) kNumOutputs };
enum Attribute { PACKED_SCORED_ATTENTION_ATTRIBUTES(LEGOKV_ENUMERATOR) kNumAttributes };
#undef LEGOKV_ENUMERATOR

// Which of the ops a plugin is.
struct Op {
  const char* name;
  bool is_scored;
  bool is_packed;  // q, k and v are one input

  // How many of Input there are; a packed op has two of them at the place of q.
  int32_t num_parts() const { return is_scored ? int32_t{kNumInputs} : int32_t{k_scoring}; }
  int32_t num_inputs() const { return at(num_parts()); }
  int32_t num_outputs() const { return is_scored ? int32_t{kNumOutputs} : int32_t{k_mass}; }
  // Where an input stands among those that the op has.
  int32_t at(int32_t input) const { return is_packed ? std::max(0, input - k_v) : input; }
  // The first of Attribute that the op has.
  int32_t first_attribute() const { return is_packed ? k_num_heads : k_scale; }

  // TensorRT has no channel for a plugin's reasons, so they go to standard error.
  int32_t refuse(const char* reason) const {
    fprintf(stderr, "legokv %s: %s\n", name, reason);
    return 1;
  }
  int32_t refuse_or_accept(Status status) const {
    return status == Status::kOk ? 0 : refuse(last_error());
  }
};

constexpr Op kLegoLinkAttention = {"LegoLinkAttention", false, false};
constexpr Op kScoredAttention = {"ScoredAttention", true, false};
constexpr Op kPackedLegoLinkAttention = {"PackedLegoLinkAttention", false, true};
constexpr Op kPackedScoredAttention = {"PackedScoredAttention", true, true};

// An op's attributes; `num_heads` is a packed one's, 0 for the others.
struct Attributes {
  int32_t num_heads;
  float scale;
};

// Puts where q, k and v begin in a packed input [T, H + 2 G, D]: in a token's row one behind the
// other.
inline void take_parts(const void* qkv, LegokvLegolinkAttention& a) {
  const char* begin = static_cast<const char*>(qkv);
  const int64_t number_bytes = with_dtype(a.dtype, [](auto number) { return sizeof(number); });
  const int64_t head_bytes = a.head_size * number_bytes;
  a.q = begin;
  a.k = begin + a.num_heads * head_bytes;
  a.v = begin + (int64_t{a.num_heads} + a.num_kv_heads) * head_bytes;
}

// Refuses a packed input of `extents` [T, heads, head size] that has not all parts and no more.
inline Status check_packed(const int64_t* extents, const LegokvLegolinkAttention& a) {
  const int64_t num_heads = int64_t{a.num_heads} + 2 * int64_t{a.num_kv_heads};
  if (extents[1] == num_heads && extents[2] == a.head_size) return Status::kOk;
  return invalid_argument(
      "qkv has %lld heads of %lld, but num_heads %d and a pool of %d KV heads of %d make %lld of "
      "%d",
      static_cast<long long>(extents[1]), static_cast<long long>(extents[2]), a.num_heads,
      a.num_kv_heads, a.head_size, static_cast<long long>(num_heads), a.head_size);
}

}  // namespace legokv
