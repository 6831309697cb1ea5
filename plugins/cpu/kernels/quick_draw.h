// A token drawn from a row with weights that are wrong by a little, which is known: where that
// could choose another token than the exact weights do, it says so instead.
//
// Between two looks at the row only each block's sum of weights is kept, and the few tokens among
// which the last that top_k or top_p keeps must be.
#pragma once

#include "cpu/kernels/marked_tokens.h"

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
// Of so few, all are listed that top_k keeps.
constexpr int64_t kFewTokens = 1024;

template <typename Raw>
class QuickDraw {
 public:
  QuickDraw(const DrawRow& row, const RowBlocks<Raw>& blocks, Parts& parts)
      : row_(row),
        blocks_(blocks),
        sums_(parts.take<double>(blocks.num_blocks)),
        room_(parts.take<double>(blocks.num_blocks)),
        marked_(blocks, parts),
        search_(int64_t{blocks.num_blocks} * kDrawBlock, parts),
        guess_(blocks, parts) {}

  // Of a row that is read, and not only for its likeliest.
  int64_t run() {
    unit_ = 1.4426950408889634 / row_.temperature;
    offset_ = unit_ * blocks_.most;
    if (!(std::abs(offset_) < kFarthestOffset)) return kUnsure;
    if (row_.top_k > 0 && row_.top_k < row_.num_tokens) keep_top_k();
    set_floor();
    if (row_.top_p < 1) {
      if (!keep_top_p()) return kUnsure;
    } else if (row_.min_p > 0) {
      weigh<false, true>({});
    } else {
      weigh<false, false>({});
    }
    return is_unsure_ ? kUnsure : drawn();
  }

 private:
  // Relative to the likeliest's, but for a factor that all have in common. A copy of what it needs:
  // of a member the compiler would not know that no store changes it.
  auto weights() const {
    const Doubles unit = all_doubles(unit_), offset = all_doubles(offset_);
    return [unit, offset](Doubles values) { return near_power(values * unit - offset); };
  }

  const TokenList& list() const { return marked_.list; }

  void weigh_list(const TokenList list) const {
    const auto weights_of = weights();
    for (int64_t i = 0; i < list.size; i += kDrawLanes) {
      store_vector(list.weights + i, weights_of(load_doubles(list.values + i)));
    }
  }

  // min_p as the least value that is kept: from floor_ surely, below under_floor_ surely not.
  void set_floor() {
    if (row_.min_p <= 0) return;
    const double least = blocks_.most + row_.temperature * std::log(row_.min_p);
    const double doubt = kDoubt * row_.temperature + 1e-14 * std::abs(blocks_.most);
    floor_ = std::min(least + doubt, blocks_.most);
    under_floor_ = least - doubt;
  }

  // Keeps only the top_k likeliest, of equal ones the first.
  void keep_top_k() {
    const int64_t count = row_.top_k;
    Bracket bracket;
    typename MarkedTokens<Raw>::Counts counts;
    if (2 * row_.top_k <= blocks_.num_blocks) {
      // As many blocks have a token of at least the last of their peaks.
      bracket.low = std::max(peak_of_rank(count), bracket.low);
      counts = marked_.mark(bracket);
    } else {
      guess_.look(kInfinity);
      guess_.weigh(kInfinity, -kInfinity);
      for (int attempt = 0; attempt < kGuesses; ++attempt) {
        bracket = guess_.bracket(static_cast<double>(count), attempt);
        counts = marked_.mark(bracket);
        if (counts.above < count && counts.above + counts.within >= count) break;
      }
    }
    // All that may come may be fewer.
    if (counts.above + counts.within < count) return;
    marked_.list_all(bracket, edge_);
    std::fill(list().weights, list().weights + list().size, 1.0);
    edge_ = search_.find(list(), static_cast<double>(counts.above), static_cast<double>(count));
  }

  double peak_of_rank(int64_t rank) {
    std::copy(blocks_.peaks, blocks_.peaks + blocks_.num_blocks, room_);
    std::nth_element(room_, room_ + rank - 1, room_ + blocks_.num_blocks,
                     [](double a, double b) { return a > b; });
    return room_[rank - 1];
  }

  // Which live tokens of a block top_k keeps.
  BlockBits kept_of(int block, const Raw* values) const {
    if (edge_.value == -kInfinity) return blocks_.live[block];
    const float above = least_float(std::nextafter(edge_.value, kInfinity));
    const int64_t num_before = edge_.id - blocks_.first_id(block) + 1;
    if (num_before <= 0) return blocks_.live[block] & block_at_least(values, above);
    const BlockBits from = blocks_.live[block] & block_at_least(values, least_float(edge_.value));
    if (num_before >= kDrawBlock) return from;
    return from & (block_at_least(values, above) | first_bits(num_before));
  }

  bool keep_top_p() {
    const bool is_few = 0 < row_.top_k && row_.top_k <= kFewTokens && edge_.value > -kInfinity;
    if (!is_few) {
      guess_.look(40 * row_.temperature);
      guess_.weigh(row_.temperature, edge_.value);
    }
    const double share = row_.top_p;
    for (int attempt = 0; attempt < kGuesses; ++attempt) {
      const Bracket bracket = is_few ? Bracket{} : guess_.bracket(share * guess_.total(), attempt);
      row_.min_p > 0 ? weigh<true, true>(bracket) : weigh<true, false>(bracket);
      if (is_unsure_) return false;
      const double wanted = share * total_, doubt = kDoubt * total_;
      if (above_ < wanted - doubt) {
        marked_.list_all(bracket, edge_);
        weigh_list(list());
        if (above_ + listed_weight() >= wanted + doubt) return keep_listed(wanted, doubt);
      }
      if (is_few) return false;
    }
    return false;
  }

  double listed_weight() const {
    double listed = 0;
    for (int64_t i = 0; i < list().size; ++i) listed += list().weights[i];
    return listed;
  }

  // Keeps of the list the likeliest that with what is above weigh `wanted`; false if others may.
  bool keep_listed(double wanted, double doubt) {
    const TokenList list = marked_.list;
    edge_ = search_.find(list, above_, wanted);
    const Edge edge = edge_;
    double* sums = sums_;
    for (int64_t i = 0; i < list.size; i += kDrawLanes) {
      const Doubles values = load_doubles(list.values + i);
      const Longs kept = edge.keeps(values, list.ids + i) & (values >= floor_);
      store_vector(list.weights + i, only(kept, load_doubles(list.weights + i)));
    }
    for (int64_t i = 0; i < list.size; ++i) sums[list.ids[i] / kDrawBlock] += list.weights[i];
    return edge_.before <= wanted - doubt && edge_.with >= wanted + doubt;
  }

  // Leaves each block's sum of the weights, of what top_k keeps, from the floor and, with top_p,
  // from `bracket.high`; then it marks the tokens that the bracket holds.
  template <bool kTopP, bool kFloor>
  void weigh(Bracket bracket) {
    double least = std::max(blocks_.most - kFarthest * row_.temperature, edge_.value);
    if (!kTopP) least = std::max(least, under_floor_);
    const auto weights_of = weights();
    const float high = least_float(bracket.high), low = least_float(bracket.low);
    const float floor = least_float(floor_), under_floor = least_float(under_floor_);
    Doubles all{}, above{};
    BlockBits unsure = 0;
    for (int block = 0; block < blocks_.num_blocks; ++block) {
      prefetch(block);
      sums_[block] = 0;
      if (kTopP) marked_.marks[block] = 0;
      if (blocks_.peaks[block] < least) continue;
      const Raw* values = blocks_.at(block);
      const BlockBits kept = kept_of(block, values);
      BlockBits over = kept;
      if constexpr (kTopP) {
        over &= block_at_least(values, high);
        marked_.marks[block] = kept & ~over & block_at_least(values, low);
      }
      BlockBits summed = over;
      if constexpr (kFloor) {
        const BlockBits from_floor = block_at_least(values, floor);
        if (under_floor < floor) {
          unsure |= kept & (from_floor ^ block_at_least(values, under_floor));
        }
        summed &= from_floor;
      }
      Doubles sum{};
      for (int i = 0; i < kDrawBlock; i += kDrawLanes) {
        const Doubles some = weights_of(load_doubles(values + i));
        if constexpr (kTopP) {
          all = add_lanes(all, kept >> i, some);
          if (kFloor) above = add_lanes(above, over >> i, some);
        }
        sum = add_lanes(sum, summed >> i, some);
      }
      if (kTopP && !kFloor) above += sum;
      sums_[block] = sum_of_doubles(sum);
    }
    is_unsure_ = unsure != 0;
    total_ = sum_of_doubles(all);
    above_ = sum_of_doubles(above);
    weigh_changed(kTopP ? bracket.high : -kInfinity);
  }

  void weigh_changed(double high) {
    const TokenList changed = blocks_.changed;
    const Edge edge = edge_;
    const double floor = floor_, under_floor = under_floor_;
    double* sums = sums_;
    Doubles all{}, above{};
    Longs unsure{};
    weigh_list(changed);
    for (int64_t i = 0; i < changed.size; i += kDrawLanes) {
      const Doubles values = load_doubles(changed.values + i);
      const Doubles kept =
          only(edge.keeps(values, changed.ids + i), load_doubles(changed.weights + i));
      const Doubles over = only(values >= high, kept);
      all += kept;
      above += over;
      unsure |= (values < floor) & (values >= under_floor);
      store_vector(changed.weights + i, only(values >= floor, over));
    }
    for (int64_t i = 0; i < changed.size; ++i) {
      sums[changed.ids[i] / kDrawBlock] += changed.weights[i];
    }
    total_ += sum_of_doubles(all);
    above_ += sum_of_doubles(above);
    is_unsure_ |= any_lane(unsure);
  }

  // The row that comes next, while this one's weights are computed.
  void prefetch(int block) const {
    const int64_t first = int64_t{block} * kDrawBlock;
    if (row_.next == nullptr || first + kDrawBlock > row_.num_tokens) return;
    const char* line = reinterpret_cast<const char*>(static_cast<const Raw*>(row_.next) + first);
    for (size_t i = 0; i < kDrawBlock * sizeof(Raw); i += 64) __builtin_prefetch(line + i, 0, 2);
  }

  // The token where the growing sum passes the random number's share.
  int64_t drawn() const {
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

  int64_t drawn_of(int block, double before, double aim, double doubt) const {
    const auto weights_of = weights();
    double values[kDrawBlock], weights[kDrawBlock];
    blocks_.copy(block, values);
    for (int i = 0; i < kDrawBlock; i += kDrawLanes) {
      store_vector(weights + i, weights_of(load_doubles(values + i)));
    }
    const int64_t first = blocks_.first_id(block);
    for (int i = 0; i < kDrawBlock; ++i) {
      if (!edge_.keeps(values[i], first + i) || values[i] < floor_) continue;
      const double with = before + weights[i];
      if (with > aim) return before <= aim - doubt && with >= aim + doubt ? first + i : kUnsure;
      before = with;
    }
    return kUnsure;
  }

  const DrawRow& row_;
  const RowBlocks<Raw>& blocks_;
  double* sums_;  // of each block's weights, those that are kept
  double* room_;
  MarkedTokens<Raw> marked_;
  EdgeSearch search_;
  Guess<Raw> guess_;
  Edge edge_;  // behind it nothing is kept
  double unit_ = 0, offset_ = 0;
  double floor_ = -kInfinity, under_floor_ = -kInfinity;
  double total_ = 0, above_ = 0;
  bool is_unsure_ = false;
};

}  // namespace
}  // namespace legokv::cpu
