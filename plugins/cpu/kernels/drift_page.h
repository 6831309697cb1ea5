// A page whose keys and values move: what is stored plus a move of each KV head.
#pragma once

#include "cpu/kernels/conversions.h"
#include "cpu/kernels/kernels.h"

namespace legokv::cpu {
namespace {

// `move` turned once more and added to `key`; to nothing where that is null.
template <int kCount, typename T>
inline void move_key_part(const T* key, const float* turn, const float* move, int half, T* out) {
  const auto cosines = load_floats<kCount>(turn), sines = load_floats<kCount>(turn + half);
  const auto first = load_floats<kCount>(move), second = load_floats<kCount>(move + half);
  auto sum = first * cosines - second * sines, other = second * cosines + first * sines;
  if (key != nullptr) {
    sum += load_floats<kCount>(key);
    other += load_floats<kCount>(key + half);
  }
  store_floats<kCount>(out, sum);
  store_floats<kCount>(out + half, other);
}

template <typename T>
inline void move_key(const T* key, const float* turn, const float* move, int head_size, T* out) {
  const int half = head_size / 2;
  const auto at = [key](int i) { return key == nullptr ? nullptr : key + i; };
  int i = 0;
  for (; kLanes == 16 && i + kLanes <= half; i += kLanes) {
    move_key_part<kLanes>(at(i), turn + i, move + i, half, out + i);
  }
  for (; i < half; i += 8) move_key_part<8>(at(i), turn + i, move + i, half, out + i);
}

// Pages lie anywhere, in pieces too short for the processor to guess what comes.
constexpr int kSlotsAhead = 6;
constexpr int kLineBytes = 64;

// What is read and written of a slot, from number `first` of a page on.
template <typename T>
inline void prefetch_slots(const T* stored, T* own, int first, int slot_size) {
  for (int i = 0; i < slot_size; i += kLineBytes / static_cast<int>(sizeof(T))) {
    __builtin_prefetch(stored + first + i, 0);
    __builtin_prefetch(own + first + i, 1);
  }
}

template <typename T>
void drift_page(const DriftPage& page) {
  const T* stored = static_cast<const T*>(page.stored);
  T* own = static_cast<T*>(page.own);
  const int slot_size = page.num_kv_heads * page.head_size;
  // To the page's place once, then to each slot's from there.
  for (int at = 0; at < slot_size; at += page.head_size) {
    move_key<float>(nullptr, page.page_turn, page.key_moves + at, page.head_size,
                    page.turned_moves + at);
  }
  for (int slot = 0; slot < page.page_size; ++slot) {
    const float* turn = page.slot_turns + slot * page.head_size;
    prefetch_slots(stored, own, (slot + kSlotsAhead) * slot_size, slot_size);
    for (int head = 0; head < page.num_kv_heads; ++head) {
      const int at = head * page.head_size, place = slot * slot_size + at;
      move_key(stored + place, turn, page.turned_moves + at, page.head_size, own + place);
    }
  }
  // A head size is a multiple of 16.
  constexpr int kStep = kLanes == 16 ? 16 : 8;
  const int values = page.page_size * slot_size;
  for (int slot = 0; slot < page.page_size; ++slot) {
    const int place = values + slot * slot_size;
    if (slot + kSlotsAhead < page.page_size) {
      prefetch_slots(stored, own, place + kSlotsAhead * slot_size, slot_size);
    }
    for (int i = 0; i < slot_size; i += kStep) {
      store_floats<kStep>(own + place + i, load_floats<kStep>(stored + place + i) +
                                               load_floats<kStep>(page.value_moves + i));
    }
  }
}

}  // namespace
}  // namespace legokv::cpu
