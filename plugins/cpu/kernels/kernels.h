// What one instruction set's build of the kernels offers, and the plain data it works on.
//
// Those builds share no function with the rest or each other: an inline function compiled twice is
// kept once, and might be the one that this processor cannot run. So here are only data.
#pragma once

#include <cstdint>

#include "cpu/cpu_launchers.h"
#include "cpu/kernels/linear_group.h"

namespace legokv::cpu {

// Neighbouring slots of one page that hold keys of ascending positions.
struct KeyRun {
  int64_t key_offset;  // of the first slot's key of KV head 0, in elements from the pool's start
  int32_t first_position;
  int32_t num_keys;
  int32_t first_place;  // of the first slot in the sequence's page table: row * page size + slot
};

// A part of a row's keys is attended by itself and then joined to the parts before it. Parts end
// after so many keys of one base, whatever rows or threads there are: so a row's sums are rounded
// at the same places in any company.
constexpr int kPartKeys = 512;

// Keys that are packed together: those of a part are taken so many at once.
constexpr int kBlockKeys = 64;

// A part of a sequence's keys: they share a base and ascend by position; how queries turn to them.
struct KeyGroup {
  const KeyRun* runs;
  int32_t num_runs;
  int32_t first_block;  // keys of its first block
  int32_t first_position;
  int32_t part;        // its number among the sequence's parts
  const float* turns;  // cosines [D / 2] then sines [D / 2] for each token of the sequence
};

// Some tokens of a sequence, and the query heads of one KV head: a row is a token's query head.
// A tile attends to all keys of its groups, which may be some only of those that its rows see.
struct Tile {
  const KeyGroup* groups;
  const int32_t* positions;  // of its tokens
  int32_t num_groups;
  int32_t first_token;        // in the step
  int32_t first_in_sequence;  // the same token, counted in its sequence
  int32_t num_tokens;
  int32_t kv_head;
  // The parts of its sequence, one after another, rows in each: weighted values [D] relative to a
  // maximum, then kPartTail numbers, of them the sum of the weights and the maximum. It leaves
  // those of its groups there. Null: the tile's groups are all, and its rows are the layer's
  // output.
  float* parts;
  // Rows before `first_scoring` (of the tile's) score no key. Where masses are asked for: what each
  // row's weights are relative to, kStatFloats a row; the sums of the rows' weights for each place.
  int32_t first_scoring;
  float* stats;
  float* mass;
};

// All tokens of a sequence in a shared tile; their rows follow the rows of the members before.
struct Member {
  const float* turns;   // of its tokens to the base that the part has in its sequence
  float* left;          // where to leave the part's rows, of KV head 0
  int64_t head_floats;  // from there to the next KV head's
  int32_t first_token;  // in the step
  int32_t num_tokens;
};

// A block of keys, and the rows whose part it belongs to: each of them sees all its keys.
struct Visit {
  const KeyRun* runs;
  int32_t num_runs;
  int32_t first_row;
  int32_t num_rows;
};

// A part of several sequences whose blocks are mostly the same pages, at whatever bases they stand:
// such a block is read once for all. Each row meets the blocks of its part in their order.
struct SharedTile {
  const Member* members;
  const Visit* visits;
  int32_t num_members;
  int32_t num_visits;
  int32_t num_rows;
  int32_t kv_head;
};

// A row's maximum, and 1 over the sum of its weights, 0 where it saw no key.
constexpr int kStatFloats = 2;

// A whole number of cache lines, so that rows stay aligned.
constexpr int kPartTail = 16;

struct Shape {
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t head_size;
  int32_t max_rows;        // of a tile
  int64_t token_stride;    // from a slot to the next in the pool, in elements
  int64_t value_distance;  // from a key to its value
  float exponent_scale;    // scale * log2(e): weights are powers of two
};

// A stored page and the page that it moves to, [2, S, G, D] each.
struct DriftPage {
  const void* stored;
  void* own;
  const float* page_turn;    // of its first slot, as in KeyGroup
  const float* slot_turns;   // of each slot from there
  const float* key_moves;    // [G, D], before rotation
  const float* value_moves;  // [G, D]
  float* turned_moves;       // scratch of [G, D]
  int32_t page_size;
  int32_t num_kv_heads;
  int32_t head_size;
};

// How finely tokens are told apart by how likely they are, before any are sorted.
constexpr int kDrawDistances = 4096;
// So many tokens have a peak and a sum of weights of their own.
constexpr int kDrawBlock = 64;

constexpr int draw_blocks(int num_tokens) { return (num_tokens + kDrawBlock - 1) / kDrawBlock; }

// A row of logits to draw a token from, with what its batch has in common.
struct DrawRow : LegokvCpuDrawRow {
  const void* next;  // the row's values that come after it, or null
  int32_t num_tokens;
  int32_t dtype;  // float32 or bfloat16
  bool is_exact;
};

struct Kernels {
  // Bytes that each of those who take scratch need for themselves, 64-aligned.
  int64_t (*scratch_bytes)(const Shape& shape);
  // Rotates a token's keys by its turn (as in KeyGroup) and puts them and its values into the pool.
  void (*write_token)(const Shape& shape, const LegokvCpuLayer& layer, int token, const float* turn,
                      int64_t key_offset);
  void (*attend_tile)(const Shape& shape, const LegokvCpuLayer& layer, const Tile& tile,
                      void* scratch);
  // Leaves the members' rows over one part.
  void (*attend_shared)(const Shape& shape, const LegokvCpuLayer& layer, const SharedTile& tile,
                        void* scratch);
  // Makes the layer's output of a tile's rows from all their parts.
  void (*join_parts)(const Shape& shape, const LegokvCpuLayer& layer, const Tile& tile,
                     int num_parts);
  // Adds to the tile's masses what its rows weigh the keys of its groups, once their stats are
  // there: attend_tile or join_parts left them.
  void (*add_mass)(const Shape& shape, const LegokvCpuLayer& layer, const Tile& tile,
                   void* scratch);
  // silu(gate) * up of one row: x is gates [columns], then ups [columns].
  void (*gate_row)(const void* x, int num_columns, void* out);
  // x / sqrt(mean(x^2) + eps) * weight of one row.
  void (*norm_row)(const void* x, const void* weight, float eps, int num_columns, void* out);
  // Adds a row to `out`.
  void (*add_row)(const void* row, int num_columns, void* out);
  // Writes all of `own`.
  void (*drift_page)(const DriftPage& page);
  // Bytes for draw_row, 64-aligned.
  int64_t (*draw_scratch_bytes)(const DrawRow& row);
  // The token's id; -1 if a logit is infinite or no number.
  int64_t (*draw_row)(const DrawRow& row, void* memory);
  // Null for other types than float32.
  void (*multiply)(const LinearGroup<float>& group);
};

// Each for a LegokvDtype; null where that build cannot do it.
const Kernels* portable_kernels(int dtype);
const Kernels* avx2_kernels(int dtype);
const Kernels* avx512_kernels(int dtype);
const Kernels* avx512_bf16_kernels(int dtype);
const Kernels* amx_kernels(int dtype);
const Kernels* software_tiles_kernels(int dtype);

}  // namespace legokv::cpu
