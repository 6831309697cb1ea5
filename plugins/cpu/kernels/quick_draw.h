// A token drawn from a row with weights that are wrong by a little, which is known: where that
// could choose another token than the exact weights do, it says so instead.
//
// Between two looks at the row only each block's sum of weights is kept, and the few tokens among
// which the last that top_k or top_p keeps must be.
#pragma once

#include "cpu/kernels/marked_tokens.h"
#include "cpu/kernels/near_weights.h"

namespace legokv::cpu {
namespace {

constexpr int64_t kUnsure = -2;

// Of so few, all are listed that top_k keeps.
constexpr int64_t kFewTokens = 1024;
// So many blocks have a sum of weights together.
constexpr int kSumBlocks = 8;
constexpr int kSumTokens = kSumBlocks * kDrawBlock;

template <typename Raw>
class QuickDraw {
 public:
  QuickDraw(const DrawRow& row, const RowBlocks<Raw>& blocks, Parts& parts)
      : row_(row),
        blocks_(blocks),
        num_sums_((blocks.num_blocks + kSumBlocks - 1) / kSumBlocks),
        sums_(parts.take<double>(num_sums_)),
        room_(parts.take<double>(blocks.num_blocks)),
        marked_(blocks, parts),
        search_(int64_t{blocks.num_blocks} * kDrawBlock, parts),
        guess_(blocks, parts) {}

  // Of a row that is read, and not only for its likeliest. By float32 weights if they can tell.
  int64_t run() {
    weights_ = NearWeights(blocks_.most, row_.temperature);
    if (!weights_.can_tell<double>()) return kUnsure;
    if (row_.top_k > 0 && row_.top_k < row_.num_tokens) keep_top_k();
    set_floor();
    if (kHasFloatWeights && weights_.can_tell<float>()) {
      const Edge edge = edge_;
      const int64_t id = drawn_by<float>();
      if (id != kUnsure) return id;
      edge_ = edge;
    }
    return drawn_by<double>();
  }

 private:
  template <typename Number>
  int64_t drawn_by() {
    if (row_.top_p < 1) return keep_top_p<Number>() ? drawn<Number>() : kUnsure;
    const Bracket bracket = {floor_, under_floor_};
    weigh<false, Number>(bracket);
    return is_on_floor(bracket) ? kUnsure : drawn<Number>();
  }

  const TokenList& list() const { return marked_.list; }

  // Their sum. A copy of what they need: of a member the compiler would not know that no store
  // changes it.
  double weigh_list(const TokenList list) const {
    const NearWeights weights = weights_;
    Doubles sum{};
    std::fill(list.values + list.size, list.values + list.size + kDrawLanes, -kInfinity);
    for (int64_t i = 0; i < list.size; i += kDrawLanes) {
      const Doubles some = weights(load_doubles(list.values + i));
      sum += some;
      store_vector(list.weights + i, some);
    }
    return sum_of_doubles(sum);
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
  Kept kept_of(int block, const Raw* values, const FloatEdge edge) const {
    const BlockBits live = blocks_.live[block];
    const int64_t last = edge.id - blocks_.first_id(block);
    if (last >= kDrawBlock - 1) return {live, edge.from};
    if (last < 0) return {live, edge.above};
    return {live & (block_at_least(values, edge.above) | first_bits(last + 1)), edge.from};
  }

  // Keeps of what top_k keeps the likeliest that have top_p of the weights, and are not below the
  // floor; false if others may be these.
  template <typename Number>
  bool keep_top_p() {
    const bool is_few = 0 < row_.top_k && row_.top_k <= kFewTokens && edge_.value > -kInfinity;
    if (!is_few) {
      guess_.look(40 * row_.temperature);
      guess_.weigh(row_.temperature, edge_.value);
    }
    for (int attempt = 0; attempt < kGuesses; ++attempt) {
      Bracket bracket = is_few ? Bracket{} : guess_.bracket(row_.top_p * guess_.total(), attempt);
      const bool is_by_floor = floor_ > bracket.high;
      if (is_by_floor) bracket = {floor_, under_floor_};
      weigh<true, Number>(bracket);
      const double wanted = row_.top_p * total_, doubt = kDoubtOf<Number> * total_;
      if (above_ < wanted - doubt) {
        // Then what is not below the floor is kept.
        if (is_by_floor) return !is_on_floor(bracket);
        marked_.list_all(bracket, edge_);
        const double listed = weigh_list(list());
        if (above_ + listed >= wanted + doubt) return keep_listed(wanted, doubt);
      }
      if (is_few) return false;
    }
    return false;
  }

  // Whether a token lies where the floor may be.
  bool is_on_floor(Bracket bracket) {
    if (floor_ == -kInfinity) return false;
    BlockBits marks = 0;
    for (int block = 0; block < blocks_.num_blocks; ++block) marks |= marked_.marks[block];
    if (marks != 0) return true;
    marked_.list.size = 0;
    marked_.list_changed(bracket, edge_);
    return list().size > 0;
  }

  // Keeps of the list the likeliest that with what is above weigh `wanted`; false if others may.
  bool keep_listed(double wanted, double doubt) {
    const TokenList list = marked_.list;
    edge_ = search_.find(list, above_, wanted);
    const Edge edge = edge_;
    const double floor = floor_, under_floor = under_floor_;
    Longs unsure{};
    for (int64_t i = 0; i < list.size; i += kDrawLanes) {
      const Doubles values = load_doubles(list.values + i);
      const Longs kept = edge.keeps(values, list.ids + i);
      unsure |= kept & (values < floor) & (values >= under_floor);
      store_vector(list.weights + i,
                   only(kept & (values >= floor), load_doubles(list.weights + i)));
    }
    add_to_sums(list);
    return !any_lane(unsure) && edge_.before <= wanted - doubt && edge_.with >= wanted + doubt;
  }

  // Of four places in the list in turns: neighbours mostly go to the same sum, and would wait for
  // each other.
  void add_to_sums(const TokenList list) {
    double* sums = sums_;
    const int64_t quarter = list.size / 4;
    for (int64_t i = 0; i < quarter; ++i) {
      for (int part = 0; part < 4; ++part) {
        const int64_t at = i + part * quarter;
        sums[static_cast<uint32_t>(list.ids[at]) / kSumTokens] += list.weights[at];
      }
    }
    for (int64_t i = 4 * quarter; i < list.size; ++i) {
      sums[static_cast<uint32_t>(list.ids[i]) / kSumTokens] += list.weights[i];
    }
  }

  // Leaves the sums of the weights, of what top_k keeps, from `bracket.high`, and with top_p their
  // total without that bound; then it marks the tokens that the bracket holds.
  template <bool kTopP, typename Number>
  void weigh(Bracket bracket) {
    double least = std::max(blocks_.most - kFarthest * row_.temperature, edge_.value);
    if (!kTopP) least = std::max(least, bracket.low);
    const NearWeights weights = weights_;
    const FloatEdge edge = float_edge_of(edge_);
    const float high = least_float(bracket.high), low = least_float(bracket.low);
    Doubles all{}, above{};
    for (int number = 0; number < num_sums_; ++number) {
      const int first = number * kSumBlocks;
      const int end = std::min(first + kSumBlocks, blocks_.num_blocks);
      BlockSums sums;
      for (int block = first; block < end; ++block) {
        prefetch(block);
        marked_.marks[block] = 0;
        if (blocks_.peaks[block] < least) continue;
        const Raw* values = blocks_.at(block);
        const Kept kept = kept_of(block, values, edge);
        add_block<kTopP, Number>(weights, values, kept, high, low, &marked_.marks[block], &sums);
      }
      const Doubles over = kTopP ? sums.over : sums.all;
      sums_[number] = sum_of_doubles(over);
      all += sums.all;
      above += over;
    }
    total_ = sum_of_doubles(all);
    above_ = sum_of_doubles(above);
    weigh_changed(bracket.high);
  }

  void weigh_changed(double high) {
    const TokenList changed = blocks_.changed;
    const Edge edge = edge_;
    Doubles all{}, above{};
    weigh_list(changed);
    for (int64_t i = 0; i < changed.size; i += kDrawLanes) {
      const Doubles values = load_doubles(changed.values + i);
      const Doubles kept =
          only(edge.keeps(values, changed.ids + i), load_doubles(changed.weights + i));
      const Doubles over = only(values >= high, kept);
      all += kept;
      above += over;
      store_vector(changed.weights + i, over);
    }
    add_to_sums(changed);
    total_ += sum_of_doubles(all);
    above_ += sum_of_doubles(above);
  }

  // The row that comes next, while this one's weights are computed.
  void prefetch(int block) const {
    const int64_t first = int64_t{block} * kDrawBlock;
    if (row_.next == nullptr || first + kDrawBlock > row_.num_tokens) return;
    const char* line = reinterpret_cast<const char*>(static_cast<const Raw*>(row_.next) + first);
    for (size_t i = 0; i < kDrawBlock * sizeof(Raw); i += 64) __builtin_prefetch(line + i, 0, 2);
  }

  // The token where the growing sum passes the random number's share.
  template <typename Number>
  int64_t drawn() const {
    double total = 0;
    for (int number = 0; number < num_sums_; ++number) total += sums_[number];
    const double aim = row_.place * total, doubt = kDoubtOf<Number> * total;
    double before = 0;
    for (int number = 0; number < num_sums_; ++number) {
      if (before + sums_[number] > aim) return drawn_of(number, before, aim, doubt);
      before += sums_[number];
    }
    return kUnsure;
  }

  int64_t drawn_of(int number, double before, double aim, double doubt) const {
    double values[kSumTokens], weights[kSumTokens];
    int32_t ids[kSumTokens];
    const int first = number * kSumBlocks;
    const int end = std::min(first + kSumBlocks, blocks_.num_blocks);
    const auto first_id = static_cast<int32_t>(blocks_.first_id(first));
    const int size = (end - first) * kDrawBlock;
    blocks_.copy(first, end, values);
    for (int i = 0; i < size; ++i) ids[i] = first_id + i;
    for (int i = 0; i < size; i += kDrawLanes) {
      const Doubles some = load_doubles(values + i);
      const Longs kept = edge_.keeps(some, ids + i) & (some >= floor_);
      store_vector(weights + i, only(kept, weights_(some)));
    }
    for (int i = 0; i < size; ++i) {
      const double with = before + weights[i];
      if (with > aim) return before <= aim - doubt && with >= aim + doubt ? ids[i] : kUnsure;
      before = with;
    }
    return kUnsure;
  }

  const DrawRow& row_;
  const RowBlocks<Raw>& blocks_;
  int num_sums_;
  double* sums_;  // of each kSumBlocks blocks' weights, those that are kept
  double* room_;
  MarkedTokens<Raw> marked_;
  EdgeSearch search_;
  Guess<Raw> guess_;
  Edge edge_;  // behind it nothing is kept
  NearWeights weights_;
  double floor_ = -kInfinity, under_floor_ = -kInfinity;
  double total_ = 0, above_ = 0;
};

}  // namespace
}  // namespace legokv::cpu
