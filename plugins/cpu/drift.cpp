#include "cpu/drift.h"

#include <algorithm>
#include <vector>

#include "cpu/instruction_sets.h"
#include "cpu/parallel.h"
#include "legokv/dtype.h"

namespace legokv::cpu {
namespace {

struct Document {
  int32_t first_token, num_tokens, first_page, num_pages;
};

const Document* documents_of(const LegokvCpuDrift& drift) {
  return reinterpret_cast<const Document*>(drift.documents);
}

bool lies_in_pool(const LegokvCpuDrift& drift, int64_t page) {
  return page >= 0 && page < drift.num_pool_pages;
}

// Counts and places, so that nothing outside the tensors is touched.
bool is_sound(const LegokvCpuDrift& drift) {
  int64_t num_rows = 0, num_pages = 0;
  for (int n = 0; n < drift.num_documents; ++n) {
    const Document& document = documents_of(drift)[n];
    const int64_t end = int64_t{document.first_token} + document.num_tokens;
    if (document.first_token < 0 || document.num_tokens < 2 || end > drift.num_tokens) return false;
    if (document.num_pages < 0 || document.first_page != num_pages) return false;
    num_rows += document.num_tokens;
    num_pages += document.num_pages;
  }
  if (num_pages != drift.num_pages) return false;
  for (int64_t row = 0; row < num_rows; ++row) {
    if (!lies_in_pool(drift, drift.stored[row] / drift.page_size) || drift.stored[row] < 0) {
      return false;
    }
  }
  for (int64_t page = 0; page < 2 * num_pages; ++page) {
    if (!lies_in_pool(drift, drift.pages[page])) return false;
  }
  return true;
}

// So many numbers of a row are summed side by side.
constexpr int kColumns = 16;

// The mean of `rows` differences [D] that lie one after another, shrunk by its own noise.
void shrunk_mean(const float* differences, int rows, int head_size, float* mean) {
  double noise = 0, square = 0;
  for (int first = 0; first < head_size; first += kColumns) {
    double middle[kColumns] = {}, spread[kColumns] = {};
    for (int row = 0; row < rows; ++row) {
      const float* found = differences + row * head_size + first;
      for (int i = 0; i < kColumns; ++i) middle[i] += found[i];
    }
    for (double& sum : middle) sum /= rows;
    for (int row = 0; row < rows; ++row) {
      const float* found = differences + row * head_size + first;
      for (int i = 0; i < kColumns; ++i) {
        spread[i] += (found[i] - middle[i]) * (found[i] - middle[i]);
      }
    }
    for (int i = 0; i < kColumns; ++i) {
      noise += spread[i] / (rows - 1) / rows;
      square += middle[i] * middle[i];
      mean[first + i] = static_cast<float>(middle[i]);
    }
  }
  // What is not a number stays so.
  const double left = 1 - noise / (square > 1e-37 ? square : 1e-37);
  const auto kept = static_cast<float>(left < 0 ? 0.0 : left);
  for (int i = 0; i < head_size; ++i) mean[i] *= kept;
}

template <typename T>
class Moves {
 public:
  Moves(const LegokvCpuDrift& drift, const Document& document, int first_row)
      : drift_(drift), document_(document), first_row_(first_row) {}

  // Of one KV head, keys before rotation and values, float32 [D] each; `scratch` has room for both
  // of all rows.
  void find(int head, float* scratch, float* key_move, float* value_move) const {
    const int size = drift_.head_size, rows = document_.num_tokens;
    float* keys = scratch;
    float* values = scratch + int64_t{rows} * size;
    for (int row = 0; row < rows; ++row) {
      const T* fresh_key = token(drift_.k, drift_.k_stride, row, head);
      const T* fresh_value = token(drift_.v, drift_.v_stride, row, head);
      const T* key = stored_key(row, head);
      const T* value = key + int64_t{drift_.page_size} * drift_.num_kv_heads * size;
      turn_back(key, row, &keys[row * size]);
      for (int i = 0; i < size; ++i) {
        keys[row * size + i] = to_float(fresh_key[i]) - keys[row * size + i];
        values[row * size + i] = to_float(fresh_value[i]) - to_float(value[i]);
      }
    }
    shrunk_mean(keys, rows, size, key_move);
    shrunk_mean(values, rows, size, value_move);
  }

 private:
  const T* token(const void* heads, int64_t stride, int row, int head) const {
    return static_cast<const T*>(heads) + (document_.first_token + row) * stride +
           head * drift_.head_size;
  }

  const T* stored_key(int row, int head) const {
    const int64_t place = drift_.stored[first_row_ + row];
    const int64_t slot = place / drift_.page_size * 2 * drift_.page_size + place % drift_.page_size;
    return static_cast<const T*>(drift_.pool) +
           (slot * drift_.num_kv_heads + head) * drift_.head_size;
  }

  void turn_back(const T* key, int row, float* out) const {
    const int half = drift_.head_size / 2;
    const float* turn = drift_.row_turns + int64_t{first_row_ + row} * drift_.head_size;
    for (int i = 0; i < half; ++i) {
      const float first = to_float(key[i]), second = to_float(key[half + i]);
      out[i] = first * turn[i] + second * turn[half + i];
      out[half + i] = second * turn[i] - first * turn[half + i];
    }
  }

  const LegokvCpuDrift& drift_;
  const Document& document_;
  int first_row_;
};

void write_pages(const LegokvCpuDrift& drift, const Kernels& kernels, int64_t element_bytes,
                 const float* key_moves, const float* value_moves, float* scratch) {
  const int64_t page_bytes =
      element_bytes * 2 * drift.page_size * drift.num_kv_heads * drift.head_size;
  const int64_t moves_size = int64_t{drift.num_kv_heads} * drift.head_size;
  std::vector<int> document_of;
  for (int n = 0; n < drift.num_documents; ++n) {
    document_of.insert(document_of.end(), documents_of(drift)[n].num_pages, n);
  }
  auto* pool = static_cast<char*>(drift.pool);
  parallel_for(drift.num_pages, drift.num_threads, [&](int64_t page, int thread) {
    const int64_t moves = document_of[page] * moves_size;
    kernels.drift_page({pool + drift.pages[page] * page_bytes,
                        pool + drift.pages[drift.num_pages + page] * page_bytes,
                        drift.page_turns + page * drift.head_size, drift.slot_turns,
                        key_moves + moves, value_moves + moves, scratch + thread * moves_size,
                        drift.page_size, drift.num_kv_heads, drift.head_size});
  });
}

}  // namespace

Status drift_documents(const LegokvCpuDrift& drift) {
  const Kernels* kernels = choose_kernels(drift.instruction_set, drift.dtype).kernels;
  if (kernels == nullptr || drift.num_documents < 0 || drift.num_kv_heads < 1 ||
      drift.head_size < 16 || drift.head_size % 16 || drift.page_size < 1 ||
      drift.num_threads < 1 || !is_sound(drift)) {
    return invalid_argument("drift: %d documents of %d pages, %d heads of %d, dtype %d, %s",
                            drift.num_documents, drift.num_pages, drift.num_kv_heads,
                            drift.head_size, drift.dtype,
                            instruction_set_name(drift.instruction_set));
  }
  const int heads = drift.num_kv_heads;
  std::vector<int> first_rows(drift.num_documents);
  for (int n = 1; n < drift.num_documents; ++n) {
    first_rows[n] = first_rows[n - 1] + documents_of(drift)[n - 1].num_tokens;
  }
  std::vector<float> key_moves(static_cast<size_t>(drift.num_documents) * heads * drift.head_size);
  std::vector<float> value_moves(key_moves.size());
  int64_t most_rows = 0;
  for (int n = 0; n < drift.num_documents; ++n) {
    most_rows = std::max<int64_t>(most_rows, documents_of(drift)[n].num_tokens);
  }
  // Here, since nothing may be thrown out of a thread of the loop.
  const int64_t scratch_size = 2 * most_rows * drift.head_size;
  std::vector<float> scratch(static_cast<size_t>(scratch_size) * drift.num_threads);
  std::vector<float> turned(static_cast<size_t>(heads) * drift.head_size * drift.num_threads);
  with_dtype(drift.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t num_items = int64_t{drift.num_documents} * heads;
    parallel_for(num_items, drift.num_threads, [&](int64_t item, int thread) {
      const int64_t n = item / heads;
      Moves<T>(drift, documents_of(drift)[n], first_rows[n])
          .find(static_cast<int>(item % heads), scratch.data() + thread * scratch_size,
                &key_moves[item * drift.head_size], &value_moves[item * drift.head_size]);
    });
    write_pages(drift, *kernels, sizeof(T), key_moves.data(), value_moves.data(), turned.data());
  });
  return Status::kOk;
}

}  // namespace legokv::cpu
