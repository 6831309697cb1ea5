#include "legokv/device.h"
#include "legokv/dtype.h"
#include "legokv/pool_layout.h"
#include "legokv/rotation.h"
#include "legolink_attention/attention_shape.h"
#include "legolink_attention/kernels.h"

namespace legokv {
namespace {

constexpr int kThreads = 256;

// One thread rotates 16 bytes of a key's first half with the matching 16 of its second half, and
// copies the same places of the value. Neighbours have neighbouring bytes.
template <typename T>
LEGOKV_KERNEL(kThreads)
write_kv_kernel(LEGOKV_PARAMETER LegokvLegolinkAttention a) {
  constexpr int kSize = Vector<T>::kSize;
  const PoolLayout layout = pool_layout(a);
  const int half = a.head_size / 2, vectors = half / kSize;
  const int64_t item = device::block_x() * kThreads + device::thread_index();
  const int64_t head_of_token = item / vectors;
  const int first = static_cast<int>(item % vectors) * kSize;
  if (head_of_token >= int64_t{a.num_tokens} * a.num_kv_heads) return;
  const int64_t token = head_of_token / a.num_kv_heads;
  const int head = static_cast<int>(head_of_token % a.num_kv_heads);
  const SlotPlace place = slot_place(layout, a.slots[token]);
  if (a.slots[token] < 0 || place.page >= a.num_pool_pages) return;

  const int64_t place_in_token = int64_t{head} * a.head_size + first;
  const T* k = static_cast<const T*>(a.k) + token * a.k_stride + place_in_token;
  const T* v = static_cast<const T*>(a.v) + token * a.v_stride + place_in_token;
  T* key = static_cast<T*>(a.pool) + key_offset(layout, place.page, place.slot, head) + first;
  T* value = key + value_distance(layout);
  Vector<T> low = *reinterpret_cast<const Vector<T>*>(k);
  Vector<T> high = *reinterpret_cast<const Vector<T>*>(k + half);
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const Rotation rotation = rotation_by(a.key_positions[token], a.inv_freq[first + i]);
    const Pair turned = rotate(rotation, {to_float(low.values[i]), to_float(high.values[i])});
    low.values[i] = from_float<T>(turned.first);
    high.values[i] = from_float<T>(turned.second);
  }
  *reinterpret_cast<Vector<T>*>(key) = low;
  *reinterpret_cast<Vector<T>*>(key + half) = high;
  *reinterpret_cast<Vector<T>*>(value) = *reinterpret_cast<const Vector<T>*>(v);
  *reinterpret_cast<Vector<T>*>(value + half) = *reinterpret_cast<const Vector<T>*>(v + half);
}

}  // namespace

Status launch_write_kv(const LegokvLegolinkAttention& a, void* stream) {
  return with_dtype(a.dtype, [&](auto number) {
    using T = decltype(number);
    const int64_t items =
        int64_t{a.num_tokens} * a.num_kv_heads * (a.head_size / 2 / Vector<T>::kSize);
    const LaunchShape shape = {(items + kThreads - 1) / kThreads, 1, 1, kThreads, 0};
    return device::launch(write_kv_kernel<T>, shape, stream, a);
  });
}

}  // namespace legokv
