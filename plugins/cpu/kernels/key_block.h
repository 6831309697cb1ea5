// Up to 64 keys of one base and their values, packed for products: read once, used by many rows.
#pragma once

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/transpose.h"

namespace legokv::cpu {
namespace {

static_assert(kBlockKeys % kPanelWidth == 0);

// Where the keys of a block lie. Those past num_keys are zeros, whose position nobody sees.
template <typename T>
struct KeyBlock {
  const T* keys[kBlockKeys];
  const T* values[kBlockKeys];
  int32_t positions[kBlockKeys];
  int32_t places[kBlockKeys];  // in the page table; of the num_keys only
  int num_keys;

  // How many of its keys, from the first on, a query sees.
  int num_seen(int query_position) const {
    int count = num_keys;
    while (count > 0 && positions[count - 1] > query_position) --count;
    return count;
  }
};

// Walks runs, block by block.
struct RunCursor {
  const KeyRun* run;
  const KeyRun* end;
  int used;     // keys of `run` that were taken
  int at_most;  // keys of the next block
};

// Takes the next block of keys up to `last_position`, or none.
template <typename T>
void take_block(RunCursor* cursor, const Shape& shape, const T* pool_head, int last_position,
                const T* zeros, KeyBlock<T>* block) {
  const int at_most = cursor->at_most;
  cursor->at_most = kBlockKeys;
  int count = 0;
  while (count < at_most && cursor->run != cursor->end) {
    const KeyRun& run = *cursor->run;
    if (cursor->used == run.num_keys) {
      ++cursor->run;
      cursor->used = 0;
      continue;
    }
    const int position = run.first_position + cursor->used;
    if (position > last_position) break;
    const T* key = pool_head + run.key_offset + cursor->used * shape.token_stride;
    block->keys[count] = key;
    block->values[count] = key + shape.value_distance;
    block->positions[count] = position;
    block->places[count] = run.first_place + cursor->used;
    ++count;
    ++cursor->used;
  }
  block->num_keys = count;
  for (int i = count; i < kBlockKeys; ++i) {
    block->keys[i] = block->values[i] = zeros;
    block->positions[i] = INT32_MAX;
  }
}

// Asks for keys `first` to `end` and their values to come nearer. Pages lie anywhere, and a key is
// a few cache lines among other heads': the processor would not guess them.
template <typename T>
inline void prefetch(const KeyBlock<T>& block, int first, int end, int head_size) {
  constexpr int kLine = 64 / sizeof(T);
  for (int key = first; key < end && key < block.num_keys; ++key) {
    for (int i = 0; i < head_size; i += kLine) {
      __builtin_prefetch(block.keys[key] + i, 0, 2);
      __builtin_prefetch(block.values[key] + i, 0, 2);
    }
  }
}

inline int rounded_up(int count, int multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// Words of a head as products take them, zeros at its end.
template <typename Operand>
inline int head_words(int head_size) {
  return rounded_up(head_size / Operand::kPerWord, Operand::kWords);
}

// packed[panel][word of D][kPanelWidth keys].
template <typename Operand, typename T>
void pack_keys(const KeyBlock<T>& block, int head_size, uint32_t* packed) {
  const int num_head_words = head_size / Operand::kPerWord;
  const int depth = head_words<Operand>(head_size);
  const int num_vectors = rounded_up(block.num_keys, Operand::kKeys) / kLanes;
  for (int v = 0; v < num_vectors; ++v) {
    uint32_t* columns =
        packed + int64_t{v / kPanelVectors} * depth * kPanelWidth + v % kPanelVectors * kLanes;
    for (int word = num_head_words; word < depth; ++word) {
      store_vector(columns + int64_t{word} * kPanelWidth, Words{});
    }
    for (int first = 0; first < num_head_words; first += kLanes) {
      const int left = num_head_words - first, num_words = left < kLanes ? left : kLanes;
      Words square[kLanes];
      for (int key = 0; key < kLanes; ++key) {
        square[key] = Operand::load_key_words(
            block.keys[v * kLanes + key] + first * Operand::kPerWord, num_words);
      }
      transpose(square);
      for (int word = 0; word < num_words; ++word) {
        store_vector(columns + int64_t{first + word} * kPanelWidth, square[word]);
      }
    }
  }
}

// packed[panel of D][kBlockKeys in words][kPanelWidth dimensions].
template <typename Operand, typename T>
void pack_values(const KeyBlock<T>& block, int head_size, uint32_t* packed) {
  constexpr int kPackedDepth = kBlockKeys / Operand::kPerWord;
  for (int v = 0; v < head_size / kLanes; ++v) {
    uint32_t* column =
        packed + v / kPanelVectors * kPackedDepth * kPanelWidth + v % kPanelVectors * kLanes;
    const int num_keys = rounded_up(block.num_keys, Operand::kWords * Operand::kPerWord);
    for (int key = 0; key < num_keys; key += Operand::kPerWord) {
      store_vector(column, Operand::load_value_words(block.values + key, v * kLanes));
      column += kPanelWidth;
    }
  }
}

}  // namespace
}  // namespace legokv::cpu
