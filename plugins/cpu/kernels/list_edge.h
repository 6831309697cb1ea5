// Where the likeliest of some listed tokens, added to those above them, reach a sum.
#pragma once

#include "cpu/kernels/row_blocks.h"

namespace legokv::cpu {
namespace {

// The last token that is kept: those of a larger value are, and of the same those up to its id.
struct Edge {
  double value = -kInfinity;
  int64_t id = std::numeric_limits<int64_t>::max();
  double before = 0;  // the sum without it, and with it
  double with = -1;

  bool keeps(double other, int64_t other_id) const {
    return (other > value) | ((other == value) & (other_id <= id));
  }

  // Of values with their ids, those that it keeps: all bits, else none.
  Longs keeps(Doubles values, const int32_t* ids) const {
    typedef int32_t Numbers __attribute__((vector_size(kDrawLanes * 4)));
    const Longs numbers = __builtin_convertvector(load_vector<Numbers>(ids), Longs);
    return (values > value) | ((values == value) & (numbers <= id));
  }
};

// The same of float32 values: those of at least `from` are kept up to the id, behind it `above`.
struct FloatEdge {
  float from, above;
  int64_t id;
};

inline FloatEdge float_edge_of(const Edge& edge) {
  const bool has_all = edge.value == -kInfinity;
  const double above = has_all ? edge.value : std::nextafter(edge.value, kInfinity);
  return {least_float(edge.value), least_float(above), edge.id};
}

constexpr int kEdgeBuckets = 1024;

class EdgeSearch {
 public:
  EdgeSearch(int64_t most_tokens, Parts& parts)
      : masses_(parts.take<double>(kEdgeBuckets)),
        buckets_(parts.take<int32_t>(most_tokens + kDrawLanes)),
        here_(parts.take<int32_t>(most_tokens)) {}

  // The edge of a list that is not empty, with `before` above it, where the sum is `wanted`: the
  // list's last if it is less.
  Edge find(const TokenList list, double before, double wanted) {
    double* masses = masses_;
    const int32_t* buckets = buckets_;
    find_buckets(list);
    std::fill(masses, masses + kEdgeBuckets, 0.0);
    for (int64_t i = 0; i < list.size; ++i) masses[buckets[i]] += list.weights[i];
    int last = 0;
    while (last + 1 < kEdgeBuckets && before + masses[last] < wanted) before += masses[last++];
    const int64_t num_here = order_bucket(list, last);
    Edge edge;
    for (int64_t i = 0; i < num_here && edge.with < wanted; ++i) {
      const double with = before + list.weights[here_[i]];
      edge = {list.values[here_[i]], list.ids[here_[i]], before, with};
      before = with;
    }
    return edge;
  }

 private:
  void find_buckets(const TokenList list) {
    typedef int32_t Numbers __attribute__((vector_size(kDrawLanes * 4)));
    std::fill(list.values + list.size, list.values + list.size + kDrawLanes, list.values[0]);
    Doubles top = all_doubles(list.values[0]), least = top;
    for (int64_t i = 0; i < list.size; i += kDrawLanes) {
      const Doubles values = load_doubles(list.values + i);
      top = larger_doubles(values, top);
      least = -larger_doubles(-values, -least);
    }
    const double most = most_of_doubles(top);
    const double scale = bucket_scale(kEdgeBuckets, most + most_of_doubles(-least));
    int32_t* buckets = buckets_;
    for (int64_t i = 0; i < list.size; i += kDrawLanes) {
      const Doubles distances = (most - load_doubles(list.values + i)) * scale;
      store_vector(buckets + i, __builtin_convertvector(distances, Numbers));
    }
  }

  // Puts the listed tokens of a bucket in order, likeliest first, of equal ones the lowest id.
  int64_t order_bucket(const TokenList list, int bucket) {
    const auto comes_before = [list](int32_t a, int32_t b) {
      const double first = list.values[a], second = list.values[b];
      return first != second ? first > second : list.ids[a] < list.ids[b];
    };
    int32_t* here = here_;
    const int32_t* buckets = buckets_;
    int64_t num_here = 0;
    for (int64_t i = 0; i < list.size; ++i) {
      here[num_here] = static_cast<int32_t>(i);
      num_here += buckets[i] == bucket;
    }
    if (!std::is_sorted(here, here + num_here, comes_before)) {
      std::sort(here, here + num_here, comes_before);
    }
    return num_here;
  }

  double* masses_;
  int32_t* buckets_;  // of the listed tokens
  int32_t* here_;
};

}  // namespace
}  // namespace legokv::cpu
