// A token drawn from a row with weights that are wrong by a little, which is known: where that
// could choose another token than the exact weights do, it says so instead.
//
// Between two looks at the row only each block's sum of weights is kept, and the few tokens among
// which the last that top_p keeps must be.
#pragma once

#include "cpu/kernels/likeliest.h"

namespace legokv::cpu {
namespace {

constexpr int64_t kUnsure = -2;

// Of a sum of weights: more than near_power's error, that of adding some millions of them, here and
// by the exact way, and all weights of what is not looked at.
constexpr double kDoubt = 1e-9;
// Further below the likeliest, in units of the temperature, is not looked at: a weight of 6e-19.
constexpr double kFarthest = 42;

// Beyond, its last bit is more than the doubt.
constexpr double kFarthestOffset = 1e6;

// Some tokens, with their values and weights; in the order of their ids.
struct TokenList {
  int64_t size = 0;
  int32_t* ids = nullptr;
  double* values = nullptr;
  double* weights = nullptr;
};

inline TokenList token_list(Parts& parts, int64_t most) {
  most += kDrawBlock;  // what append writes behind the last, and a last block
  return {0, parts.take<int32_t>(most), parts.take<double>(most), parts.take<double>(most)};
}

template <typename Raw>
class QuickDraw {
 public:
  QuickDraw(const DrawRow& row, const RowBlocks<Raw>& blocks, Parts& parts)
      : row_(row),
        all_(blocks),
        blocks_(blocks),
        sums_(parts.take<double>(blocks.num_blocks)),
        room_(parts.take<double>(blocks.num_blocks)),
        places_(parts.take<int32_t>(blocks.num_blocks)),
        masses_(parts.take<double>(kGuessBuckets)),
        list_(token_list(parts, int64_t{blocks.num_blocks} * kDrawBlock)),
        kept_(token_list(parts, int64_t{blocks.num_blocks} * kDrawBlock)),
        guess_by_weight_(blocks_, row.temperature, parts),
        guess_by_count_(blocks_, kInfinity, parts) {}

  // Of a row that is read, and not only for its likeliest.
  int64_t run() {
    blocks_ = all_;
    const bool has_top_k = row_.top_k > 0 && row_.top_k < row_.num_tokens;
    const bool is_fewer = has_top_k && keep_top_k();
    unit_ = 1.4426950408889634 / row_.temperature;
    offset_ = unit_ * blocks_.most;
    if (!(std::abs(offset_) < kFarthestOffset)) return kUnsure;
    set_floor();
    if (row_.top_p < 1) {
      if (!keep_top_p()) return kUnsure;
    } else if (row_.min_p > 0) {
      weigh<false, true>({-kInfinity, -kInfinity});
    } else {
      weigh<false, false>({-kInfinity, -kInfinity});
    }
    if (is_unsure_) return kUnsure;
    const int64_t place = drawn();
    return is_fewer && place >= 0 ? kept_.ids[place] : place;
  }

 private:
  // Relative to the likeliest's, but for a factor that all have in common. A copy of what it needs:
  // of a member the compiler would not know that no store changes it.
  auto weights() const {
    const Doubles unit = all_doubles(unit_), offset = all_doubles(offset_);
    return [unit, offset](Doubles values) { return near_power(values * unit - offset); };
  }

  // min_p as the least value that is kept: from floor_ surely, below under_floor_ surely not.
  void set_floor() {
    if (row_.min_p <= 0) return;
    const double least = blocks_.most + row_.temperature * std::log(row_.min_p);
    const double doubt = kDoubt * row_.temperature + 1e-14 * std::abs(blocks_.most);
    floor_ = std::min(least + doubt, blocks_.most);
    under_floor_ = least - doubt;
  }

  // Leaves each block's sum of the weights from `bracket.high` and from the floor, and lists the
  // tokens that the bracket holds. Without top_p the bracket is not looked at.
  template <bool kTopP, bool kFloor>
  void weigh(Bracket bracket) {
    list_.size = 0;
    double least = blocks_.most - kFarthest * row_.temperature;
    if (!kTopP) least = std::max(least, under_floor_);
    const auto weights_of = weights();
    const Doubles high = all_doubles(bracket.high), low = all_doubles(bracket.low);
    const Doubles floor = all_doubles(floor_), under_floor = all_doubles(under_floor_);
    Doubles all{}, above{};
    Bits unsure = 0;
    for (int block = 0; block < blocks_.num_blocks; ++block) {
      prefetch(block);
      sums_[block] = 0;
      if (blocks_.peaks[block] < least) continue;
      sums_[block] = blocks_.at(block, [&](const auto* values) {
        Doubles kept{};
        for (int i = 0; i < kDrawBlock; i += kDrawLanes) {
          const Doubles some = load_doubles(values + i);
          const Doubles weights = weights_of(some);
          Bits lanes = kAllLanes;
          if constexpr (kTopP) {
            lanes = at_least(some, high);
            const Bits here = at_least(some, low) & ~lanes;
            if (here != 0) append_to_list(here, block * kDrawBlock + i, some, weights);
            all += weights;
            if (kFloor) above += only(lanes, weights);
          }
          if constexpr (kFloor) {
            const Bits from_floor = at_least(some, floor);
            unsure |= from_floor ^ at_least(some, under_floor);
            lanes &= from_floor;
          }
          kept += only(lanes, weights);
        }
        if (kTopP && !kFloor) above += kept;
        return sum_of_doubles(kept);
      });
    }
    is_unsure_ = unsure != 0;
    total_ = sum_of_doubles(all);
    above_ = sum_of_doubles(above);
  }

  // The row that comes next, while this one's weights are computed.
  void prefetch(int block) const {
    const int64_t first = int64_t{block} * kDrawBlock;
    if (row_.next == nullptr || first + kDrawBlock > row_.num_tokens) return;
    const char* line = reinterpret_cast<const char*>(static_cast<const Raw*>(row_.next) + first);
    for (size_t i = 0; i < kDrawBlock * sizeof(Raw); i += 64) __builtin_prefetch(line + i, 0, 2);
  }

  void append_to_list(Bits lanes, int32_t first, Doubles values, Doubles weights) {
    append_ids(lanes, first, list_.ids + list_.size);
    append(lanes, values, list_.values + list_.size);
    append(lanes, weights, list_.weights + list_.size);
    list_.size += __builtin_popcount(lanes);
  }

  bool keep_top_p() {
    guess_by_weight_.look();
    for (int attempt = 0; attempt < kGuesses; ++attempt) {
      const Bracket bracket = guess_by_weight_.bracket(row_.top_p, 0, attempt);
      row_.min_p > 0 ? weigh<true, true>(bracket) : weigh<true, false>(bracket);
      if (is_unsure_) return false;
      const double wanted = row_.top_p * total_, doubt = kDoubt * total_;
      const double listed = listed_weight();
      if (above_ < wanted - doubt && above_ + listed >= wanted + doubt) return cut_list(wanted);
    }
    return false;
  }

  double listed_weight() const {
    Doubles sum{};
    const int64_t end = list_.size / kDrawLanes * kDrawLanes;
    for (int64_t i = 0; i < end; i += kDrawLanes) sum += load_doubles(list_.weights + i);
    double listed = sum_of_doubles(sum);
    for (int64_t i = end; i < list_.size; ++i) listed += list_.weights[i];
    return listed;
  }

  // Keeps of the list the likeliest that with what is above weigh `wanted`.
  bool cut_list(double wanted) {
    double top = list_.values[0], least = top;
    for (int64_t i = 0; i < list_.size; ++i) {
      top = std::max(top, list_.values[i]);
      least = std::min(least, list_.values[i]);
    }
    const double scale = bucket_scale(kGuessBuckets, top - least);
    const auto bucket_of = [&](double value) { return static_cast<int>((top - value) * scale); };
    std::fill(masses_, masses_ + kGuessBuckets, 0.0);
    for (int64_t i = 0; i < list_.size; ++i) {
      masses_[bucket_of(list_.values[i])] += list_.weights[i];
    }
    double before = above_;
    int last = 0;
    while (last + 1 < kGuessBuckets && before + masses_[last] < wanted) before += masses_[last++];
    int64_t num_here = 0;
    int32_t* here = kept_room();
    bool is_level = true;
    for (int64_t i = 0; i < list_.size; ++i) {
      const int bucket = bucket_of(list_.values[i]);
      keep(i, bucket < last);
      if (bucket != last) continue;
      here[num_here++] = static_cast<int32_t>(i);
      is_level = is_level && list_.values[i] == list_.values[here[0]];
    }
    if (!is_level) {
      std::sort(here, here + num_here, [&](int32_t a, int32_t b) {
        return list_.values[a] != list_.values[b] ? list_.values[a] > list_.values[b] : a < b;
      });
    }
    return keep_of(here, num_here, before, wanted);
  }

  // Keeps the first of `here` with which the sum is wanted; false if it may be another.
  bool keep_of(const int32_t* here, int64_t num_here, double before, double wanted) {
    const double doubt = kDoubt * total_;
    for (int64_t i = 0; i < num_here; ++i) {
      const double with = before + list_.weights[here[i]];
      keep(here[i], true);
      if (with >= wanted) {
        cut_value_ = list_.values[here[i]];
        cut_id_ = list_.ids[here[i]];
        return before <= wanted - doubt && with >= wanted + doubt;
      }
      before = with;
    }
    return false;
  }

  // Without branches: what comes cannot be foretold.
  void keep(int64_t listed, bool is_kept) {
    const double weight = list_.values[listed] >= floor_ ? list_.weights[listed] : 0.0;
    sums_[list_.ids[listed] / kDrawBlock] += is_kept ? weight : 0.0;
  }

  // Room for as many numbers as there are tokens: nobody needs what top_k kept with its weights.
  int32_t* kept_room() { return reinterpret_cast<int32_t*>(kept_.weights); }

  // Makes the row that of the top_k likeliest alone, of equal ones the first; false if no more than
  // these may come.
  bool keep_top_k() {
    const int64_t k = row_.top_k;
    double least = -kInfinity;
    int64_t num_above = 0;
    if (2 * k <= blocks_.num_blocks) {
      // As many blocks have a token of at least the last of their peaks.
      std::copy(blocks_.peaks, blocks_.peaks + blocks_.num_blocks, room_);
      list_from({kInfinity, largest(room_, blocks_.num_blocks, k)}, &num_above);
    } else {
      list_around(k, &num_above);
    }
    if (num_above + list_.size < k) return false;
    std::copy(list_.values, list_.values + list_.size, kept_.values);
    least = largest(kept_.values, list_.size, k - num_above);
    keep_from(least, k);
    const int64_t end = (k + kDrawBlock - 1) / kDrawBlock * kDrawBlock;
    std::fill(kept_.values + k, kept_.values + end, -kInfinity);
    blocks_ = RowBlocks<Raw>(kept_.values, k, room_, places_);
    return true;
  }

  void list_around(int64_t k, int64_t* num_above) {
    guess_by_count_.look();
    for (int attempt = 0; attempt < kGuesses; ++attempt) {
      list_from(guess_by_count_.bracket(0, static_cast<double>(k), attempt), num_above);
      if (*num_above < k && *num_above + list_.size >= k) return;
    }
  }

  // Lists the tokens in the bracket, and counts those above it.
  void list_from(Bracket bracket, int64_t* num_above) {
    list_.size = *num_above = 0;
    for (int block = 0; block < blocks_.num_blocks; ++block) {
      if (blocks_.peaks[block] < bracket.low) continue;
      blocks_.at(block, [&](const auto* values) {
        for (int i = 0; i < kDrawBlock; i += kDrawLanes) {
          const Doubles some = load_doubles(values + i);
          const Bits above = at_least(some, all_doubles(bracket.high));
          const Bits here = at_least(some, all_doubles(bracket.low)) & ~above;
          *num_above += __builtin_popcount(above);
          if (here != 0) append_to_list(here, block * kDrawBlock + i, some, Doubles{});
        }
      });
    }
  }

  // The value of this rank, of 1 and more; the values change places.
  static double largest(double* values, int64_t count, int64_t rank) {
    std::nth_element(values, values + rank - 1, values + count,
                     [](double a, double b) { return a > b; });
    return values[rank - 1];
  }

  void keep_from(double least, int64_t k) {
    int64_t size = 0, num_least = 0;
    const auto keep_some = [&](Bits lanes, int32_t first, Doubles some) {
      append_ids(lanes, first, kept_.ids + size);
      append(lanes, some, kept_.values + size);
      size += __builtin_popcount(lanes);
      num_least += __builtin_popcount(lanes & at_least(all_doubles(least), some));
    };
    for (int block = 0; block < blocks_.num_blocks; ++block) {
      if (blocks_.peaks[block] < least) continue;
      blocks_.at(block, [&](const auto* values) {
        for (int i = 0; i < kDrawBlock; i += kDrawLanes) {
          const Doubles some = load_doubles(values + i);
          const Bits lanes = at_least(some, all_doubles(least));
          if (lanes != 0) keep_some(lanes, block * kDrawBlock + i, some);
        }
      });
    }
    if (size > k) drop_equals(least, size, num_least - (size - k));
  }

  // Of the `size` that are kept, drops those of the least value behind the first `num_wanted`.
  void drop_equals(double least, int64_t size, int64_t num_wanted) {
    int64_t kept = 0;
    for (int64_t i = 0; i < size; ++i) {
      if (kept_.values[i] == least && num_wanted-- <= 0) continue;
      kept_.values[kept] = kept_.values[i];
      kept_.ids[kept++] = kept_.ids[i];
    }
  }

  // The place of the token where the growing sum passes the random number's share.
  int64_t drawn() {
    double total = 0;
    for (int block = 0; block < blocks_.num_blocks; ++block) total += sums_[block];
    const double aim = row_.place * total, doubt = kDoubt * total;
    double before = 0;
    for (int block = 0; block < blocks_.num_blocks; ++block) {
      if (before + sums_[block] > aim) return drawn_of(block, before, aim, doubt);
      before += sums_[block];
    }
    return kUnsure;
  }

  int64_t drawn_of(int block, double before, double aim, double doubt) {
    const auto weights_of = weights();
    double values[kDrawBlock], weights[kDrawBlock];
    blocks_.at(block, [&](const auto* from) {
      for (int i = 0; i < kDrawBlock; i += kDrawLanes) {
        const Doubles some = load_doubles(from + i);
        store_vector(values + i, some);
        store_vector(weights + i, weights_of(some));
      }
    });
    const int64_t first = int64_t{block} * kDrawBlock;
    for (int i = 0; i < kDrawBlock; ++i) {
      const bool is_cut =
          values[i] < cut_value_ || (values[i] == cut_value_ && first + i > cut_id_);
      if (is_cut || values[i] < floor_) continue;
      const double with = before + weights[i];
      if (with > aim) return before <= aim - doubt && with >= aim + doubt ? first + i : kUnsure;
      before = with;
    }
    return kUnsure;
  }

  const DrawRow& row_;
  const RowBlocks<Raw>& all_;
  RowBlocks<Raw> blocks_;  // all, or what top_k keeps
  double* sums_;           // of each block's weights, those that are kept
  double* room_;
  int32_t* places_;
  double* masses_;
  TokenList list_;
  TokenList kept_;
  Guess<Raw> guess_by_weight_;
  Guess<Raw> guess_by_count_;
  double unit_ = 0, offset_ = 0;
  double floor_ = -kInfinity, under_floor_ = -kInfinity;
  double cut_value_ = -kInfinity;
  int64_t cut_id_ = std::numeric_limits<int64_t>::max();
  double total_ = 0, above_ = 0;
  bool is_unsure_ = false;
};

}  // namespace
}  // namespace legokv::cpu
