// A token drawn from a row of logits, in float64: weights, what top_k, top_p and min_p keep of
// them, and the token that a random number chooses. The tokens stand in the order of their ids.
//
// The likeliest are found without sorting a row: of the tokens that may be among them it is counted
// how far below the likeliest they lie, and only those as far as the last that is kept are sorted.
#pragma once

#include "cpu/kernels/row_blocks.h"

namespace legokv::cpu {
namespace {

// The last token that is kept: those of a larger value are, and of the same those up to its id.
struct Cut {
  double value = -kInfinity;
  int64_t id = std::numeric_limits<int64_t>::max();
  double weight = 0;        // of all that is kept
  bool has_equals = false;  // behind it
};

// What ExactDraw needs, whole cache lines: of each token its weight, twice its id and its distance;
// two numbers a block; a mass and a count a distance.
constexpr int64_t exact_draw_bytes(int num_tokens) {
  const int64_t blocks = draw_blocks(num_tokens);
  const int64_t bytes =
      blocks * kDrawBlock * (8 + 2 * 4 + 2) + blocks * 2 * 8 + kDrawDistances * (8 + 4);
  return (bytes + 63) / 64 * 64;
}

// Draws from one row's values, whole blocks of them with -infinity behind the last token, whose
// peaks `blocks` has; at a temperature above 0. `memory`: exact_draw_bytes of it, 64-aligned.
class ExactDraw {
 public:
  template <typename Raw>
  ExactDraw(const DrawRow& row, const RowBlocks<Raw>& blocks, const double* values, void* memory)
      : row_(row),
        values_(values),
        num_blocks_(blocks.num_blocks),
        most_(blocks.most),
        weights_(static_cast<double*>(memory)),
        peaks_(blocks.peaks),
        sums_(weights_ + int64_t{num_blocks_} * kDrawBlock),
        ordered_(sums_ + num_blocks_),
        masses_(ordered_ + num_blocks_),
        counts_(reinterpret_cast<int32_t*>(masses_ + kDrawDistances)),
        members_(counts_ + kDrawDistances),
        distances_(reinterpret_cast<uint16_t*>(members_ + int64_t{num_blocks_} * 2 * kDrawBlock)) {}

  int64_t run() {
    weigh();
    if (has_top_k() || row_.top_p < 1) drop_behind(last_kept());
    if (row_.min_p > 0) drop_unlikely();
    return drawn();
  }

 private:
  bool has_top_k() const { return row_.top_k > 0 && row_.top_k < row_.num_tokens; }

  int64_t first_id(int block) const { return int64_t{block} * kDrawBlock; }

  int64_t end_id(int block) const {
    return std::min<int64_t>(first_id(block) + kDrawBlock, row_.num_tokens);
  }

  void weigh() {
    for (int block = 0; block < num_blocks_; ++block) {
      const double* values = values_ + first_id(block);
      double* weights = weights_ + first_id(block);
      for (int i = 0; i < kDrawBlock; i += kDrawLanes) {
        const Doubles exponents = (load_doubles(values + i) - most_) / row_.temperature;
        store_vector(weights + i, exponential(exponents));
      }
      sums_[block] = sum_of_block(block);
    }
  }

  double sum_of_block(int block) const {
    const double* weights = weights_ + first_id(block);
    Doubles sum = load_doubles(weights);
    for (int i = kDrawLanes; i < kDrawBlock; i += kDrawLanes) sum += load_doubles(weights + i);
    double of_lanes = 0;
    for (int i = 0; i < kDrawLanes; ++i) of_lanes += sum[i];
    return of_lanes;
  }

  double total() const {
    double sum = 0;
    for (int block = 0; block < num_blocks_; ++block) sum += sums_[block];
    return sum;
  }

  // The last of the likeliest that top_k, and top_p of what it keeps, keep.
  Cut last_kept() {
    const int64_t count = has_top_k() ? row_.top_k : row_.num_tokens;
    const double weight = has_top_k() ? kInfinity : row_.top_p * total();
    std::copy(peaks_, peaks_ + num_blocks_, ordered_);
    // Mostly some tokens above the peaks of some blocks are enough; else all are looked at.
    const int64_t most_blocks = num_blocks_ - num_blocks_ / 16;
    for (int64_t blocks = std::max<int64_t>(64, has_top_k() ? count : 0); blocks < most_blocks;
         blocks *= 6) {
      if (gather(peak_of_rank(blocks)) && is_enough(count, weight))
        return cut_of_both(count, weight);
    }
    if (gather(peak_of_rank(most_blocks)) && is_enough(count, weight)) {
      return cut_of_both(count, weight);
    }
    gather(-kInfinity);
    return cut_of_both(count, weight);
  }

  double peak_of_rank(int64_t rank) {
    std::nth_element(ordered_, ordered_ + rank - 1, ordered_ + num_blocks_,
                     [](double a, double b) { return a > b; });
    return ordered_[rank - 1];
  }

  // Sums in another order must not decide whether it is enough.
  bool is_enough(int64_t count, double weight) const {
    return num_members_ >= count || members_weight_ >= weight * (1 + 1e-9);
  }

  Cut cut_of_both(int64_t count, double weight) {
    const Cut cut = cut_at(count, weight);
    return has_top_k() && row_.top_p < 1 ? cut_at(count, row_.top_p * cut.weight) : cut;
  }

  // Makes the tokens of at least `bound` the members, with how far each is from the likeliest;
  // false if there is none.
  bool gather(double bound) {
    num_members_ = 0;
    for (int block = 0; block < num_blocks_; ++block) {
      if (peaks_[block] < bound) continue;
      for (int64_t id = first_id(block); id < end_id(block); ++id) {
        const double value = values_[id];
        members_[num_members_] = static_cast<int32_t>(id);
        num_members_ += value >= bound;
      }
    }
    measure_distances(bound == -kInfinity ? least_finite() : bound);
    return num_members_ > 0;
  }

  double least_finite() const {
    Doubles least = Doubles{} + most_;
    for (int block = 0; block < num_blocks_; ++block) {
      const double* values = values_ + first_id(block);
      for (int i = 0; i < kDrawBlock; i += kDrawLanes) {
        const Doubles some = load_doubles(values + i);
        least = ((some < least) & (some > -kInfinity)) ? some : least;
      }
    }
    double of_lanes = least[0];
    for (int i = 1; i < kDrawLanes; ++i) of_lanes = std::min<double>(of_lanes, least[i]);
    return of_lanes;
  }

  void measure_distances(double least) {
    std::fill(masses_, masses_ + kDrawDistances, 0.0);
    std::fill(counts_, counts_ + kDrawDistances, 0);
    members_weight_ = 0;
    // What weighs e^-40 and less is as far as can be.
    const double range = std::min(most_ - least, 40 * row_.temperature);
    const double scale = bucket_scale(kDrawDistances, range);
    for (int64_t i = 0; i < num_members_; ++i) {
      const double below = std::min(most_ - values_[members_[i]], range);
      const int distance = static_cast<int>(below * scale);
      const double weight = weights_[members_[i]];
      distances_[i] = static_cast<uint16_t>(distance);
      ++counts_[distance];
      masses_[distance] += weight;
      members_weight_ += weight;
    }
  }

  // The fewest of the likeliest members that are `count` or weigh `weight`.
  Cut cut_at(int64_t count, double weight) const {
    int64_t num_before = 0;
    double before = 0;
    for (int distance = 0; distance < kDrawDistances; ++distance) {
      const int64_t here = counts_[distance];
      if (here > 0 && (num_before + here >= count || before + masses_[distance] >= weight)) {
        const Cut cut = cut_among(distance, count - num_before, weight, before);
        if (cut.id >= 0) return cut;
      }
      num_before += here;
      before += masses_[distance];
    }
    return {-kInfinity, row_.num_tokens, before};
  }

  // The cut among the members of one distance; no id if a sum in another order did not reach it.
  Cut cut_among(int distance, int64_t count, double weight, double before) const {
    int64_t num_here = 0;
    int32_t* here = members_ + num_members_;
    for (int64_t i = 0; i < num_members_; ++i) {
      if (distances_[i] == distance) here[num_here++] = members_[i];
    }
    std::sort(here, here + num_here, [&](int32_t a, int32_t b) {
      return values_[a] != values_[b] ? values_[a] > values_[b] : a < b;
    });
    for (int64_t i = 0; i < num_here; ++i) {
      before += weights_[here[i]];
      if (i + 1 < count && before < weight) continue;
      const bool has_equals = i + 1 < num_here && values_[here[i + 1]] == values_[here[i]];
      return {values_[here[i]], here[i], before, has_equals};
    }
    return {0, -1, 0};
  }

  void drop_behind(const Cut& cut) {
    for (int block = 0; block < num_blocks_; ++block) {
      if (peaks_[block] < cut.value) {
        sums_[block] = 0;
        continue;
      }
      const double* values = values_ + first_id(block);
      double* weights = weights_ + first_id(block);
      for (int i = 0; i < kDrawBlock; i += kDrawLanes) {
        const Doubles kept = load_doubles(weights + i);
        store_vector(weights + i, load_doubles(values + i) >= cut.value ? kept : Doubles{});
      }
      if (cut.has_equals) drop_equals(block, cut);
      sums_[block] = sum_of_block(block);
    }
  }

  void drop_equals(int block, const Cut& cut) {
    for (int64_t id = first_id(block); id < end_id(block); ++id) {
      if (values_[id] == cut.value && id > cut.id) weights_[id] = 0;
    }
  }

  void drop_unlikely() {
    for (int block = 0; block < num_blocks_; ++block) {
      // None weighs more than all.
      if (sums_[block] < row_.min_p) {
        sums_[block] = 0;
        continue;
      }
      double* weights = weights_ + first_id(block);
      for (int i = 0; i < kDrawBlock; i += kDrawLanes) {
        const Doubles some = load_doubles(weights + i);
        store_vector(weights + i, some >= row_.min_p ? some : Doubles{});
      }
      sums_[block] = sum_of_block(block);
    }
  }

  // The first token where the growing sum passes the random number's share, the last that adds to
  // it at most: a product that rounds up to the whole sum is past the end.
  int64_t drawn() const {
    const double aim = row_.place * total();
    double before = 0;
    int last = 0;
    for (int block = 0; block < num_blocks_; ++block) {
      if (before + sums_[block] > aim) return drawn_of(block, aim - before);
      before += sums_[block];
      last = sums_[block] > 0 ? block : last;
    }
    return drawn_of(last, kInfinity);
  }

  int64_t drawn_of(int block, double aim) const {
    double sum = 0;
    int64_t last = first_id(block);
    for (int64_t id = first_id(block); id < end_id(block); ++id) {
      sum += weights_[id];
      if (sum > aim) return id;
      last = weights_[id] > 0 ? id : last;
    }
    return last;
  }

  const DrawRow& row_;
  const double* values_;
  int num_blocks_;
  double most_;
  int64_t num_members_ = 0;
  double members_weight_ = 0;
  double* weights_;
  const double* peaks_;  // of each block
  double* sums_;         // of each block's weights
  double* ordered_;      // peaks
  double* masses_;       // of each distance
  int32_t* counts_;
  int32_t* members_;  // ids, and behind them those of one distance
  uint16_t* distances_;
};

}  // namespace
}  // namespace legokv::cpu
