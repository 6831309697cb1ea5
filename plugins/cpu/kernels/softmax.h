// Online softmax (arXiv 1805.02867): a row's weights of one block, and what they do to its sums.
#pragma once

#include "cpu/kernels/conversions.h"
#include "cpu/kernels/exponential.h"

namespace legokv::cpu {
namespace {

// Far below every score, and a hidden key's; finite, so that differences to it are numbers.
constexpr float kNoScore = -1e30f;

// How far, as a power of two, a score may pass the maximum before that is raised: floats have room
// for such weights, and most blocks then need no look at which of their scores is the largest.
constexpr float kSlack = 8;

// What a row has seen so far. `sums` [head size] are its values weighted relative to `maximum`,
// `total` [kLanes] is the sum of the weights.
struct RowState {
  float* maximum;
  float* total;
  float* sums;
};

// Hides the scores of keys past the query.
inline void hide_scores(float* scores, const int32_t* positions, int query_position, int count) {
  for (int i = 0; i < count; i += kLanes) {
    const Ints hidden = load_vector<Ints>(positions + i) > query_position;
    const Floats score = load_vector<Floats>(scores + i);
    store_vector(scores + i, hidden ? all_lanes(kNoScore) : score);
  }
}

inline void raise_maximum(const RowState& row, float maximum, float exponent_scale, int head_size) {
  const Floats shrunk = exp2_of<float>(all_lanes((*row.maximum - maximum) * exponent_scale));
  for (int i = 0; i < head_size; i += kLanes) {
    store_vector(row.sums + i, shrunk * load_vector<Floats>(row.sums + i));
  }
  store_vector(row.total, shrunk * load_vector<Floats>(row.total));
  *row.maximum = maximum;
}

struct ScoreScale {
  float exponent_scale;
  float slack;  // kSlack / exponent_scale: of scores
};

// Turns `count` scores, of which one at least is seen, into weights; a multiple of kLanes.
template <typename Number>
void weigh(const float* scores, int count, const ScoreScale& scale, const RowState& row,
           int head_size, Number* weights) {
  Floats largest = load_vector<Floats>(scores);
  for (int i = kLanes; i < count; i += kLanes) {
    largest = larger(largest, load_vector<Floats>(scores + i));
  }
  if (any_above(largest, *row.maximum + scale.slack)) {
    raise_maximum(row, largest_lane(largest), scale.exponent_scale, head_size);
  }
  const Floats top = all_lanes(*row.maximum * scale.exponent_scale);
  Floats total = load_vector<Floats>(row.total);
  const auto weight_at = [&](int i) {
    return exp2_of<Number>(load_vector<Floats>(scores + i) * scale.exponent_scale - top);
  };
  int i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    const Floats first = weight_at(i), second = weight_at(i + kLanes);
    total += first;
    total += second;
    store_pair(weights + i, first, second);
  }
  for (; i < count; i += kLanes) {
    const Floats weight = weight_at(i);
    total += weight;
    store_floats<kLanes>(weights + i, weight);
  }
  store_vector(row.total, total);
}

// Adds a row's weights, each `share` times its power above `maximum`, to those of other rows.
template <typename Number>
void add_weights(const float* scores, int count, float exponent_scale, float maximum, float share,
                 float* mass) {
  const Floats top = all_lanes(maximum * exponent_scale), shares = all_lanes(share);
  for (int i = 0; i < count; i += kLanes) {
    const Floats weight = exp2_of<Number>(load_vector<Floats>(scores + i) * exponent_scale - top);
    store_vector(mass + i, load_vector<Floats>(mass + i) + weight * shares);
  }
}

}  // namespace
}  // namespace legokv::cpu
