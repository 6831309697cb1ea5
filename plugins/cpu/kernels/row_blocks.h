// A row of logits in blocks of kDrawBlock, read where it lies: what is changed of it stands apart,
// and neither that nor what must not come is among a block's live tokens.
#pragma once

#include <algorithm>

#include "cpu/kernels/block_bits.h"

namespace legokv::cpu {
namespace {

// Hands out parts of one piece of memory, whole cache lines; of null it only counts.
class Parts {
 public:
  explicit Parts(char* memory) : memory_(memory) {}

  template <typename T>
  T* take(int64_t count) {
    T* part = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + bytes_);
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return part;
  }

  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

// Some tokens, with their values and weights.
struct TokenList {
  int64_t size = 0;
  int32_t* ids = nullptr;
  double* values = nullptr;
  double* weights = nullptr;
};

// Room for so many, and for whole vectors of them.
inline TokenList token_list(Parts& parts, int64_t most) {
  most += kDrawLanes;
  return {0, parts.take<int32_t>(most), parts.take<double>(most), parts.take<double>(most)};
}

template <typename Raw>
class RowBlocks {
 public:
  RowBlocks(const DrawRow& row, Parts& parts)
      : num_blocks(draw_blocks(row.num_tokens)),
        peaks(parts.take<double>(num_blocks)),
        live(parts.take<BlockBits>(num_blocks)),
        changed(token_list(parts, row.num_changes)),
        row_(row),
        changes_(parts.take<int32_t>(row.num_changes)),
        raw_(static_cast<const Raw*>(row.values)),
        tail_(parts.take<Raw>(kDrawBlock)) {}

  // Looks at all of the row; false if a logit is no number or infinite.
  bool read() {
    copy_tail();
    find_live();
    Floats check{};
    for (int block = 0; block < num_blocks; ++block) {
      const Raw* values = at(block);
      peaks[block] =
          live[block] == kAllBits ? peak_of(values, &check) : peak_of(values, live[block], &check);
      most = std::max(most, peaks[block]);
    }
    // Infinity times 0, and whatever is no number, is no number.
    for (int i = 0; i < kLanes; ++i) {
      if (check[i] != 0) return false;
    }
    change_values();
    Doubles largest = all_doubles(most);
    for (int64_t i = 0; i < changed.size; i += kDrawLanes) {
      largest = larger_doubles(load_doubles(changed.values + i), largest);
    }
    most = most_of_doubles(largest);
    return true;
  }

  // The block's values before any change, whole.
  const Raw* at(int block) const {
    const int64_t first = int64_t{block} * kDrawBlock;
    return first + kDrawBlock > row_.num_tokens ? tail_ : raw_ + first;
  }

  // Of listed live tokens.
  void values_of(const TokenList list) const {
    const Raw* raw = raw_;
    for (int64_t i = 0; i < list.size; ++i) list.values[i] = to_float(raw[list.ids[i]]);
  }

  // The values of some blocks as they are drawn from, -infinity for what must not come.
  void copy(int first, int end, double* to) const {
    for (int block = first; block < end; ++block) {
      copy_live(block, to + first_id(block) - first_id(first));
    }
    const auto size = static_cast<uint64_t>(end - first) * kDrawBlock;
    const TokenList listed = changed;
    for (int64_t i = 0; i < listed.size; ++i) {
      const auto place = static_cast<uint64_t>(listed.ids[i] - first_id(first));
      if (place < size) to[place] = listed.values[i];
    }
  }

  // The same of all, whose blocks then have the peaks.
  void copy_all(double* to) {
    for (int block = 0; block < num_blocks; ++block) copy_live(block, to + first_id(block));
    for (int64_t i = 0; i < changed.size; ++i) {
      double& peak = peaks[changed.ids[i] / kDrawBlock];
      to[changed.ids[i]] = changed.values[i];
      peak = std::max(peak, changed.values[i]);
    }
  }

  // The id of the first value that none is larger than.
  int64_t first_of_most() const {
    int64_t first = row_.num_tokens;
    for (int block = 0; block < num_blocks && first == row_.num_tokens; ++block) {
      if (peaks[block] != most) continue;
      const BlockBits equal = live[block] & block_at_least(at(block), least_float(most));
      if (equal != 0) first = first_id(block) + __builtin_ctzll(equal);
    }
    for (int64_t i = 0; i < changed.size; ++i) {
      if (changed.values[i] == most) first = std::min<int64_t>(first, changed.ids[i]);
    }
    // Where nothing may come, the first does.
    return first == row_.num_tokens ? 0 : first;
  }

  static int64_t first_id(int block) { return int64_t{block} * kDrawBlock; }

  int num_blocks;
  double most = -kInfinity;
  double* peaks;      // of each block's live tokens the largest value
  BlockBits* live;    // of each block: those that may come with the value that they have
  TokenList changed;  // those that may come with another; whole vectors, in no order

 private:
  // Only what is in the row may be read of it.
  void copy_tail() {
    const int64_t first = row_.num_tokens / kDrawBlock * kDrawBlock;
    std::fill(tail_, tail_ + kDrawBlock, Raw{});
    std::copy(raw_ + first, raw_ + row_.num_tokens, tail_);
  }

  void find_live() {
    for (int block = 0; block < num_blocks; ++block) live[block] = kAllBits;
    live[num_blocks - 1] = first_bits(row_.num_tokens - first_id(num_blocks - 1));
    if (row_.allowed != nullptr) keep_allowed();
    for (int64_t i = 0; i < row_.num_banned; ++i) leave_out(live, row_.banned_ids[i]);
    // Of two changes of a token the last counts.
    const int64_t* ids = row_.change_ids;
    int32_t* changes = changes_;
    TokenList listed = changed;
    BlockBits* bits = live;
    for (int64_t i = row_.num_changes - 1; i >= 0; --i) {
      listed.ids[listed.size] = static_cast<int32_t>(ids[i]);
      changes[listed.size] = static_cast<int32_t>(i);
      listed.size += leave_out(bits, ids[i]);
    }
    changed.size = listed.size;
  }

  void keep_allowed() {
    for (int block = 0; first_id(block) + kDrawBlock <= row_.num_tokens; ++block) {
      live[block] = bits_of_bytes(row_.allowed + first_id(block));
    }
    for (int64_t id = row_.num_tokens / kDrawBlock * kDrawBlock; id < row_.num_tokens; ++id) {
      if (row_.allowed[id] == 0) leave_out(live, id);
    }
  }

  // Whether it was live.
  static bool leave_out(BlockBits* live, int64_t id) {
    const auto number = static_cast<uint64_t>(id);
    BlockBits& bits = live[number / kDrawBlock];
    const bool was_live = (bits >> (number % kDrawBlock)) & 1;
    bits &= ~(BlockBits{1} << (number % kDrawBlock));
    return was_live;
  }

  static double peak_of(const Raw* values, Floats* check) {
    Floats most = load_floats<kLanes>(values);
    *check += most * 0.0f;
    for (int i = kLanes; i < kDrawBlock; i += kLanes) {
      const Floats some = load_floats<kLanes>(values + i);
      *check += some * 0.0f;
      most = larger(some, most);
    }
    return largest_lane(most);
  }

  static double peak_of(const Raw* values, BlockBits lanes, Floats* check) {
    Floats most = all_lanes(-std::numeric_limits<float>::infinity());
    for (int i = 0; i < kDrawBlock; i += kLanes) {
      const Floats some = load_floats<kLanes>(values + i);
      *check += some * 0.0f;
      most = larger(floats_of(lanes >> i, some), most);
    }
    return largest_lane(most);
  }

  void change_values() {
    // Copies: else each store might change them, for all that the compiler knows.
    const TokenList listed = changed;
    const LegokvCpuDrawRow row = row_;
    const Raw* raw = raw_;
    const int32_t* changes = changes_;
    double* divisors = listed.weights;
    for (int64_t i = 0; i < listed.size; ++i) {
      const int32_t change = changes[i];
      listed.values[i] = static_cast<double>(to_float(raw[listed.ids[i]])) + row.bias[change];
      divisors[i] = row.divisor[change];
    }
    // Whether a logit is above 0 cannot be foretold: both are computed.
    for (int64_t i = 0; i < listed.size; i += kDrawLanes) {
      const Doubles before = load_doubles(listed.values + i), divisor = load_doubles(divisors + i);
      store_vector(listed.values + i, before > Doubles{} ? before / divisor : before * divisor);
    }
    for (int64_t i = 0; i < listed.size; ++i) listed.values[i] -= row.taken[changes[i]];
    std::fill(listed.values + listed.size, listed.values + listed.size + kDrawLanes, -kInfinity);
  }

  void copy_live(int block, double* to) const {
    const Raw* values = at(block);
    for (int i = 0; i < kDrawBlock; i += kDrawLanes) store_vector(to + i, load_doubles(values + i));
    for (BlockBits others = ~live[block]; others != 0; others &= others - 1) {
      to[__builtin_ctzll(others)] = -kInfinity;
    }
  }

  const DrawRow& row_;
  int32_t* changes_;  // which of the row's each of `changed` is
  const Raw* raw_;
  Raw* tail_;  // the last block where the row ends in it
};

}  // namespace
}  // namespace legokv::cpu
