// Between which values the last of a row's likeliest tokens lies, guessed from each block's peak
// and a part of the others: who counts sees whether it is so, and guesses again more widely.
#pragma once

#include <cmath>

#include "cpu/kernels/row_blocks.h"

namespace legokv::cpu {
namespace {

// Tokens of at least `high` are among the likeliest, those below `low` are not: nor are those that
// must not come.
struct Bracket {
  double high = kInfinity;
  double low = std::numeric_limits<double>::lowest();
};

constexpr int kGuessBuckets = 1024;
constexpr int kSampleRate = 16;
constexpr int kSampleStride = kSampleRate * kLanes / kDrawBlock;  // of such a block kLanes tokens
constexpr int kKnownBlocks = 32;  // of the highest peaks: less than so many are looked at whole
constexpr int kGuesses = 3;       // the last is everything

// How the tokens lie below the likeliest. `look` comes first, then `weigh` or `count`.
template <typename Raw>
class Guess {
 public:
  Guess(const RowBlocks<Raw>& blocks, Parts& parts)
      : blocks_(blocks),
        peaks_(parts.take<int32_t>(kGuessBuckets + 1)),
        others_(parts.take<int32_t>(kGuessBuckets + 1)),
        sums_(parts.take<double>(kGuessBuckets)),
        spreads_(parts.take<double>(kGuessBuckets)) {}

  // As far below the likeliest as `farthest`; what lies further is taken to lie there.
  void look(double farthest) {
    const double range = std::min(blocks_.most - least(), farthest);
    if (range == range_) return;
    range_ = range;
    scale_ = bucket_scale(kGuessBuckets, range);
    std::fill(peaks_, peaks_ + kGuessBuckets, 0);
    std::fill(others_, others_ + kGuessBuckets, 0);
    count(blocks_.peaks, blocks_.num_blocks);
    count(blocks_.changed.values, blocks_.changed.size);
    count_known();
    for_sample([&](int block, int place) {
      if (blocks_.peaks[block] < known_) count(block, place, others_);
    });
  }

  // A token weighs e^(-distance / temperature), 1 where that is infinite; none below `least`.
  void weigh(double temperature, double least) {
    const double step = scale_ > 0 ? std::exp(-1 / (scale_ * temperature)) : 1;
    const int last = least > -kInfinity ? place_of(least) : kGuessBuckets - 1;
    double weight = std::sqrt(step), sum = 0, spread = 0;
    for (int bucket = 0; bucket < kGuessBuckets; ++bucket) {
      const double others = kSampleRate * others_[bucket] * weight;
      sum += bucket > last ? 0 : peaks_[bucket] * weight + others;
      spread += bucket > last ? 0 : kSampleRate * others * weight;
      sums_[bucket] = sum;
      spreads_[bucket] = spread;
      weight *= step;
    }
  }

  // Where the likeliest reach `wanted` of the weights; wider at each try.
  Bracket bracket(double wanted, int attempt) const {
    if (attempt + 1 >= kGuesses) return {};
    const double spread = spreads_[kGuessBuckets - 1], part = wanted / total();
    const double above = spreads_[std::min(reaching(wanted), kGuessBuckets - 1)];
    const double error = (1 - part) * (1 - part) * above + part * part * (spread - above);
    const double width = (attempt == 0 ? 2 : 16) * std::sqrt(std::max(error, 0.0));
    return {value_of(reaching(wanted - width) - 1, kInfinity),
            value_of(reaching(wanted + width) + 2, Bracket().low)};
  }

  double total() const { return sums_[kGuessBuckets - 1]; }

 private:
  // What is no number, as infinity times 0, is as far as can be.
  int place_of(double value) const {
    const double scaled = (blocks_.most - value) * scale_;
    return scaled < kGuessBuckets - 1 ? static_cast<int>(scaled) : kGuessBuckets - 1;
  }

  // The likeliest tokens, which a sample would tell too little of, are in the blocks of the highest
  // peaks: these are counted whole.
  void count_known() {
    int bucket = 0;
    for (int count = 0; bucket < kGuessBuckets; ++bucket) {
      count += peaks_[bucket];
      if (count >= kKnownBlocks) break;
    }
    known_ = scale_ > 0 ? blocks_.most - bucket / scale_ : kInfinity;
    for (int block = 0; block < blocks_.num_blocks; ++block) {
      if (blocks_.peaks[block] < known_) continue;
      for (int place = 0; place < kDrawBlock; place += kLanes) count(block, place, peaks_);
    }
  }

  void count(const double* values, int64_t size) const {
    typedef int32_t Numbers __attribute__((vector_size(kDrawLanes * 4)));
    const Doubles far = all_doubles(kGuessBuckets - 1);
    int32_t* counts = peaks_;
    int64_t i = 0;
    for (; i + kDrawLanes <= size; i += kDrawLanes) {
      const Doubles scaled = (blocks_.most - load_doubles(values + i)) * scale_;
      const Numbers places = __builtin_convertvector(scaled < far ? scaled : far, Numbers);
      for (int lane = 0; lane < kDrawLanes; ++lane) ++counts[places[lane]];
    }
    for (; i < size; ++i) ++counts[place_of(values[i])];
  }

  // Counts some live tokens from a place in a block on, but those that are its peak.
  void count(int block, int place, int32_t* counts) const {
    const Floats values = load_floats<kLanes>(blocks_.at(block) + place);
    const auto most = static_cast<float>(blocks_.most), scale = static_cast<float>(scale_);
    const Floats far = all_lanes(kGuessBuckets - 1);
    const Floats scaled = (most - values) * scale;
    const Floats near = larger(scaled < far ? scaled : far, Floats{});
    const Floats peak = all_lanes(static_cast<float>(blocks_.peaks[block]));
    const BlockBits others = (blocks_.live[block] >> place) & ~floats_at_least(values, peak);
    // What is not counted goes to a bucket of its own.
    const Floats bucket = chosen(lanes_of(others), near, all_lanes(kGuessBuckets));
    const Ints places = __builtin_convertvector(bucket, Ints);
    for (int i = 0; i < kLanes; ++i) ++counts[places[i]];
  }

  double value_of(int bucket, double otherwise) const {
    const bool is_known = bucket > 0 && bucket < kGuessBuckets - 1 && scale_ > 0;
    return is_known ? blocks_.most - bucket / scale_ : otherwise;
  }

  template <typename Body>
  void for_sample(const Body& body) const {
    for (int block = 0; block < blocks_.num_blocks; block += kSampleStride) {
      body(block, block / kSampleStride * kLanes % kDrawBlock);
    }
  }

  // Of the sample.
  double least() const {
    Floats least = all_lanes(std::numeric_limits<float>::max());
    for_sample([&](int block, int place) {
      const Floats values = load_floats<kLanes>(blocks_.at(block) + place);
      const Floats lanes = floats_of(blocks_.live[block] >> place, values);
      least = ((lanes < least) & (lanes > -std::numeric_limits<float>::infinity())) ? lanes : least;
    });
    return std::min<double>(blocks_.most, -largest_lane(-least));
  }

  int reaching(double wanted) const {
    return static_cast<int>(std::lower_bound(sums_, sums_ + kGuessBuckets, wanted) - sums_);
  }

  const RowBlocks<Raw>& blocks_;
  double range_ = -1;
  double scale_ = 0;
  double known_ = kInfinity;
  int32_t* peaks_;   // how many peaks, changed and tokens of the known blocks, at each distance
  int32_t* others_;  // of the sample
  double* sums_;
  double* spreads_;
};

}  // namespace
}  // namespace legokv::cpu
