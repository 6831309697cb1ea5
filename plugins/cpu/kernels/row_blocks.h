// A row of logits in blocks of kDrawBlock, with what is changed of it: read where it lies, and
// copied to float64 only in the blocks that a change, a mask or the row's end meets.
#pragma once

#include <algorithm>

#include "cpu/kernels/draw_lanes.h"

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

template <typename Raw>
class RowBlocks {
 public:
  RowBlocks() = default;

  RowBlocks(const DrawRow& row, Parts& parts)
      : num_blocks(draw_blocks(row.num_tokens)),
        peaks(parts.take<double>(num_blocks)),
        row_(&row),
        raw_(static_cast<const Raw*>(row.values)),
        own_(parts.take<double>(int64_t{num_blocks} * kDrawBlock)),
        place_of_(parts.take<int32_t>(num_blocks)),
        starts_(parts.take<int32_t>(num_blocks + 2)),
        changed_ids_(parts.take<int32_t>(num_changed(row))),
        changed_(parts.take<double>(num_changed(row))) {}

  // Of some values that lie one after another, with -infinity behind them in the last block.
  RowBlocks(double* values, int64_t num_values, double* room_for_peaks, int32_t* room)
      : num_blocks(draw_blocks(static_cast<int>(num_values))),
        peaks(room_for_peaks),
        own_(values),
        place_of_(room) {
    for (int block = 0; block < num_blocks; ++block) {
      place_of_[block] = block;
      peaks[block] = peak_of(values + int64_t{block} * kDrawBlock);
      most = std::max(most, peaks[block]);
    }
  }

  static int64_t num_changed(const DrawRow& row) { return row.num_changes + row.num_banned; }

  // Looks at all of the row; false if a logit is no number or infinite.
  bool read() {
    sort_changes();
    Floats check{};
    int num_own = 0;
    for (int block = 0; block < num_blocks; ++block) {
      const int64_t first = int64_t{block} * kDrawBlock;
      if (is_plain(block)) {
        place_of_[block] = -1;
        peaks[block] = plain_peak(raw_ + first, &check);
      } else {
        place_of_[block] = num_own;
        double* own = own_ + int64_t{num_own++} * kDrawBlock;
        copy_block(block, own, &check);
        peaks[block] = peak_of(own);
      }
      most = std::max(most, peaks[block]);
    }
    // Infinity times 0, and whatever is no number, is no number.
    for (int i = 0; i < kLanes; ++i) {
      if (check[i] != 0) return false;
    }
    return true;
  }

  // Calls body with a pointer to the block's values.
  template <typename Body>
  auto at(int block, const Body& body) const {
    const int32_t place = place_of_[block];
    if (place < 0) return body(raw_ + int64_t{block} * kDrawBlock);
    return body(static_cast<const double*>(own_ + int64_t{place} * kDrawBlock));
  }

  // The id of the first value that none is larger than.
  int64_t first_of_most() const {
    int block = 0;
    while (block + 1 < num_blocks && peaks[block] != most) ++block;
    return int64_t{block} * kDrawBlock + at(block, [&](const auto* values) {
             int place = 0;
             while (place + 1 < kDrawBlock && to_double(values[place]) != most) ++place;
             return place;
           });
  }

  int num_blocks = 0;
  double most = -kInfinity;
  double* peaks = nullptr;  // each block's largest value

 private:
  static double to_double(double value) { return value; }
  static double to_double(Raw value) { return to_float(value); }

  static double peak_of(const double* values) {
    Doubles most = load_doubles(values);
    for (int i = kDrawLanes; i < kDrawBlock; i += kDrawLanes) {
      most = larger_doubles(load_doubles(values + i), most);
    }
    return most_of_doubles(most);
  }

  static double plain_peak(const Raw* values, Floats* check) {
    Floats most = load_floats<kLanes>(values);
    *check += most * 0.0f;
    for (int i = kLanes; i < kDrawBlock; i += kLanes) {
      const Floats some = load_floats<kLanes>(values + i);
      *check += some * 0.0f;
      most = larger(some, most);
    }
    return largest_lane(most);
  }

  bool is_plain(int block) const {
    const int64_t first = int64_t{block} * kDrawBlock;
    if (first + kDrawBlock > row_->num_tokens || starts_[block] != starts_[block + 1]) return false;
    return row_->allowed == nullptr || is_all_allowed(row_->allowed + first);
  }

  static bool is_all_allowed(const uint8_t* allowed) {
    uint64_t all = 0x0101010101010101;
    for (int i = 0; i < kDrawBlock; i += 8) all &= load_vector<uint64_t>(allowed + i);
    return all == 0x0101010101010101;
  }

  void copy_block(int block, double* own, Floats* check) const {
    const int64_t first = int64_t{block} * kDrawBlock;
    const int count = static_cast<int>(std::min<int64_t>(kDrawBlock, row_->num_tokens - first));
    if (count == kDrawBlock) {
      for (int i = 0; i < kDrawBlock; i += kLanes) {
        *check += load_floats<kLanes>(raw_ + first + i) * 0.0f;
      }
      for (int i = 0; i < kDrawBlock; i += kDrawLanes) {
        store_vector(own + i, load_doubles(raw_ + first + i));
      }
    } else {
      std::fill(own, own + kDrawBlock, -kInfinity);
      for (int i = 0; i < count; ++i) {
        own[i] = to_float(raw_[first + i]);
        (*check)[0] += to_float(raw_[first + i]) * 0.0f;
      }
    }
    for (int i = starts_[block]; i < starts_[block + 1]; ++i) {
      own[changed_ids_[i] - first] = changed_[i];
    }
    if (row_->allowed == nullptr) return;
    for (int i = 0; i < count; ++i) own[i] = row_->allowed[first + i] != 0 ? own[i] : -kInfinity;
  }

  // Puts the changes of each block together, the banned last.
  void sort_changes() {
    std::fill(starts_, starts_ + num_blocks + 2, 0);
    int32_t* next = starts_ + 1;
    const auto for_each = [&](const auto& body) {
      for (int64_t i = 0; i < row_->num_changes; ++i) body(row_->change_ids[i], i);
      for (int64_t i = 0; i < row_->num_banned; ++i) body(row_->banned_ids[i], int64_t{-1});
    };
    for_each([&](int64_t id, int64_t) { ++next[id / kDrawBlock + 1]; });
    for (int block = 0; block < num_blocks; ++block) next[block + 1] += next[block];
    for_each([&](int64_t id, int64_t change) {
      const int32_t place = next[id / kDrawBlock]++;
      changed_ids_[place] = static_cast<int32_t>(id);
      changed_[place] = change < 0 ? -kInfinity : changed(id, change);
    });
  }

  double changed(int64_t id, int64_t change) const {
    const double before = static_cast<double>(to_float(raw_[id])) + row_->bias[change];
    const double divisor = row_->divisor[change];
    return (before > 0 ? before / divisor : before * divisor) - row_->taken[change];
  }

  const DrawRow* row_ = nullptr;
  const Raw* raw_ = nullptr;
  double* own_ = nullptr;
  int32_t* place_of_ = nullptr;  // of a block in own_; -1: as it is
  int32_t* starts_ = nullptr;    // of each block's changes
  int32_t* changed_ids_ = nullptr;
  double* changed_ = nullptr;
};

}  // namespace
}  // namespace legokv::cpu
