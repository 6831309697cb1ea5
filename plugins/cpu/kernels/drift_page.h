// A page whose keys and values move: what is stored plus a move of each KV head.
#pragma once

#include "cpu/kernels/conversions.h"
#include "cpu/kernels/kernels.h"

namespace legokv::cpu {
namespace {

template <int kCount, typename T>
inline void move_key_part(const T* key, const float* turn, const float* move, int half, T* out) {
  const auto cosines = load_floats<kCount>(turn), sines = load_floats<kCount>(turn + half);
  const auto first = load_floats<kCount>(move), second = load_floats<kCount>(move + half);
  store_floats<kCount>(out, load_floats<kCount>(key) + (first * cosines - second * sines));
  store_floats<kCount>(out + half,
                       load_floats<kCount>(key + half) + (second * cosines + first * sines));
}

// The move is turned to the key's position, as the key was.
template <typename T>
inline void move_key(const T* key, const float* turn, const float* move, int head_size, T* out) {
  const int half = head_size / 2;
  int i = 0;
  for (; kLanes == 16 && i + kLanes <= half; i += kLanes) {
    move_key_part<kLanes>(key + i, turn + i, move + i, half, out + i);
  }
  for (; i < half; i += 8) move_key_part<8>(key + i, turn + i, move + i, half, out + i);
}

template <typename T>
void drift_page(const DriftPage& page) {
  const T* stored = static_cast<const T*>(page.stored);
  T* own = static_cast<T*>(page.own);
  const int slot_size = page.num_kv_heads * page.head_size;
  for (int slot = 0; slot < page.page_size; ++slot) {
    const float* turn = page.turns + slot * page.head_size;
    for (int head = 0; head < page.num_kv_heads; ++head) {
      const int at = head * page.head_size, place = slot * slot_size + at;
      move_key(stored + place, turn, page.key_moves + at, page.head_size, own + place);
    }
  }
  const int values = page.page_size * slot_size;
  for (int slot = 0; slot < page.page_size; ++slot) {
    const int place = values + slot * slot_size;
    for (int i = 0; i < slot_size; i += 8) {
      store_floats<8>(own + place + i,
                      load_floats<8>(stored + place + i) + load_floats<8>(page.value_moves + i));
    }
  }
}

}  // namespace
}  // namespace legokv::cpu
