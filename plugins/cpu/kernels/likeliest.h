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
constexpr int kSampleStride = 2;  // of blocks; of such a block kDrawLanes are looked at
constexpr double kSampleRate = kSampleStride * kDrawBlock / kDrawLanes;
constexpr int kKnownBlocks = 64;  // of the highest peaks: less than so many are looked at whole
constexpr int kGuesses = 3;       // the last is everything

// How the tokens lie below the likeliest, which weigh e^(-distance / temperature), or 1 each where
// the temperature is infinite.
template <typename Raw>
class Guess {
 public:
  Guess(const RowBlocks<Raw>& blocks, double temperature, Parts& parts)
      : blocks_(blocks),
        temperature_(temperature),
        peaks_(parts.take<int32_t>(kGuessBuckets)),
        others_(parts.take<int32_t>(kGuessBuckets)),
        sums_(parts.take<double>(kGuessBuckets)),
        spreads_(parts.take<double>(kGuessBuckets)) {}

  void look() {
    std::fill(peaks_, peaks_ + kGuessBuckets, 0);
    std::fill(others_, others_ + kGuessBuckets, 0);
    const double range = std::min(blocks_.most - least(), 40 * temperature_);
    scale_ = bucket_scale(kGuessBuckets, range);
    int block = 0;
    for (; block + kDrawLanes <= blocks_.num_blocks; block += kDrawLanes) {
      count(load_doubles(blocks_.peaks + block), kInfinity, peaks_);
    }
    for (; block < blocks_.num_blocks; ++block) {
      ++peaks_[static_cast<int>(distances(all_doubles(blocks_.peaks[block]))[0])];
    }
    count_known();
    for_sample([&](Doubles values, double peak) {
      if (peak < known_) count(values, peak, others_);
    });
    sum_up();
  }

  // Where the likeliest reach `share` of all, or `count` of them; wider at each try.
  Bracket bracket(double share, double count, int attempt) const {
    if (attempt + 1 >= kGuesses) return {};
    const double total = sums_[kGuessBuckets - 1], spread = spreads_[kGuessBuckets - 1];
    const double wanted = count > 0 ? count : share * total, part = wanted / total;
    const double above = spreads_[std::min(reaching(wanted), kGuessBuckets - 1)];
    const double error = (1 - part) * (1 - part) * above + part * part * (spread - above);
    const double width = (attempt == 0 ? 3 : 24) * std::sqrt(std::max(error, 0.0));
    return {value_of(reaching(wanted - width) - 1, kInfinity),
            value_of(reaching(wanted + width) + 2, Bracket().low)};
  }

 private:
  Doubles distances(Doubles values) const {
    const Doubles far = all_doubles(kGuessBuckets - 1);
    const Doubles scaled = (blocks_.most - values) * scale_;
    return scaled < far ? scaled : far;
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
      const double peak = blocks_.peaks[block];
      if (peak < known_) continue;
      blocks_.at(block, [&](const auto* values) {
        for (int i = 0; i < kDrawBlock; i += kDrawLanes) {
          count(load_doubles(values + i), peak, peaks_);
        }
      });
    }
  }

  // Counts the values but those that are the peak.
  void count(Doubles values, double peak, int32_t* counts) const {
    typedef int32_t Numbers __attribute__((vector_size(kDrawLanes * 4)));
    const Numbers far = __builtin_convertvector(distances(values), Numbers);
    const Bits others = at_least(values, all_doubles(peak));
    for (int i = 0; i < kDrawLanes; ++i) counts[far[i]] += 1 - ((others >> i) & 1);
  }

  double value_of(int bucket, double otherwise) const {
    const bool is_known = bucket > 0 && bucket < kGuessBuckets - 1 && scale_ > 0;
    return is_known ? blocks_.most - bucket / scale_ : otherwise;
  }

  template <typename Body>
  void for_sample(const Body& body) const {
    for (int block = 0; block < blocks_.num_blocks; block += kSampleStride) {
      const int place = block / kSampleStride * kDrawLanes % kDrawBlock;
      blocks_.at(block, [&](const auto* values) {
        body(load_doubles(values + place), blocks_.peaks[block]);
      });
    }
  }

  double least() const {
    Doubles least = all_doubles(blocks_.most);
    for_sample([&](Doubles values, double) {
      least = ((values < least) & (values > -kInfinity)) ? values : least;
    });
    return -most_of_doubles(-least);
  }

  // What all down to each bucket weigh, and how far that may be wrong.
  void sum_up() {
    const double step = scale_ > 0 ? std::exp(-1 / (scale_ * temperature_)) : 1;
    double weight = std::sqrt(step), sum = 0, spread = 0;
    for (int bucket = 0; bucket < kGuessBuckets; ++bucket) {
      const double others = kSampleRate * others_[bucket] * weight;
      sum += peaks_[bucket] * weight + others;
      spread += kSampleRate * others * weight;
      sums_[bucket] = sum;
      spreads_[bucket] = spread;
      weight *= step;
    }
  }

  int reaching(double wanted) const {
    int bucket = 0;
    while (bucket < kGuessBuckets && sums_[bucket] < wanted) ++bucket;
    return bucket;
  }

  const RowBlocks<Raw>& blocks_;
  double temperature_;
  double scale_ = 0;
  double known_ = kInfinity;
  int32_t* peaks_;   // how many peaks, and tokens of the known blocks, at each distance
  int32_t* others_;  // of the sample
  double* sums_;
  double* spreads_;
};

}  // namespace
}  // namespace legokv::cpu
