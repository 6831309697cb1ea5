// The CPU library's plain C interface: a step is begun once, then attended layer by layer; and what
// lies between: linear layers, norms and gates. A token's results have the same bits in any
// company.
//
// Legend of shapes: T tokens, B sequences, P rows of a page table, N pool pages, S page size,
// H query heads, G KV heads, D head size, M imported pages; of a linear layer T rows, N columns of
// the result, K products in each sum.
#pragma once

#include <stdint.h>

#include "legokv/launchers.h"

#ifdef __cplusplus
extern "C" {
#endif

// Which build of the kernels runs. BEST is the last that this processor has and that can do the
// dtype; naming another is for tests and measurements.
enum LegokvInstructionSet {
  LEGOKV_BEST = 0,
  LEGOKV_SOFTWARE_TILES = 1,  // bfloat16 only: what AMX does, slowly, for tests anywhere
  LEGOKV_PORTABLE = 2,
  LEGOKV_AVX2 = 3,         // with FMA and F16C
  LEGOKV_AVX512 = 4,       // F, BW, DQ, VL
  LEGOKV_AVX512_BF16 = 5,  // bfloat16 only
  LEGOKV_AMX = 6,          // bfloat16 only
};

// What all layers of a step share. Nothing of it is read after legokv_cpu_begin has returned.
struct LegokvCpuStep {
  const int32_t* positions;      // [T], ascending within a sequence
  const int32_t* key_positions;  // [T]
  const int32_t* slots;          // [T]; a slot outside the pool is not written
  const int32_t* query_start;    // [B + 1], ascending from 0
  const int32_t* pages;          // [B, P, 4]: page, base, position of slot 0, filled slots
  const float* inv_freq;         // [D / 2]
  const int32_t* scoring;        // [B]: how many of each sequence's last tokens score keys; or null
  int64_t num_pool_pages;
  int32_t num_tokens;
  int32_t num_sequences;
  int32_t num_table_rows;
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t head_size;  // a multiple of 16
  int32_t page_size;
  int32_t dtype;
  int32_t instruction_set;
  int32_t num_threads;
  float scale;  // positive
};

// One layer's tensors, of the step's dtype. A token's heads are contiguous, tokens are a stride of
// so many elements apart.
struct LegokvCpuLayer {
  const void* q;  // T x [H, D], not rotated
  const void* k;  // T x [G, D], not rotated
  const void* v;  // T x [G, D]
  void* pool;     // [N, 2, S, G, D]
  void* out;      // [T, H, D]
  // [B, P, S], or null: of each slot the sum of the weights that it has in the attention of the
  // query heads of its sequence's scoring tokens, which the step must name then.
  float* mass;
  int64_t q_stride;
  int64_t k_stride;
  int64_t v_stride;
};

// Whole pages that requests begin with as others have them, in all layers.
struct LegokvCpuPageCopy {
  void* pools;             // [L, N, 2, S, G, D]
  const int32_t* sources;  // [M]
  const int32_t* targets;  // [M]: none of them twice, and none a source
  int64_t num_layers;
  int64_t num_pool_pages;
  int64_t page_bytes;
  int32_t num_pages;  // M
  int32_t num_threads;
};

// Documents that move as what is recomputed of them does on the mean; n documents, R of their
// tokens are recomputed, they lie in M pages.
struct LegokvCpuDrift {
  const void* k;  // T x [G, D], not rotated
  const void* v;  // T x [G, D]
  void* pool;     // [N, 2, S, G, D]
  // [n, 4]: the document's first token in the step and how many of these are its, its first page
  // among the M and how many are its. Tokens and pages go on from one document to the next.
  const int32_t* documents;
  const int32_t* stored;    // [R]: where their stored KV lies, page * S + slot
  const int32_t* pages;     // [2, M]: stored pages, then the pages that they move to
  const float* row_turns;   // [R, D]: cosines and sines [D / 2] of their key positions
  const float* page_turns;  // [M, D]: of the key positions of the pages' first slots
  const float* slot_turns;  // [S, D]: of positions 0 to S - 1
  int64_t num_pool_pages;
  int64_t k_stride;
  int64_t v_stride;
  int32_t num_tokens;
  int32_t num_documents;
  int32_t num_pages;  // M
  int32_t num_kv_heads;
  int32_t head_size;  // a multiple of 16
  int32_t page_size;
  int32_t dtype;
  int32_t instruction_set;
  int32_t num_threads;
};

// A linear layer over float32 or bfloat16 rows, with what stands before and behind it. A result's
// products are summed in one order, whatever T is.
struct LegokvCpuLinear {
  const void* x;         // [T, K], or [T, 2, K] where it is gated
  const void* weight;    // [N, K], as legokv_cpu_pack_weight or legokv_cpu_pack_blocks left it
  const float* bias;     // [N], or null
  const void* norm;      // [K]: the weight of an RMSNorm that x goes through first, or null
  const void* residual;  // [T, N]: what the result, rounded, is added to; or null
  void* out;             // [T, N]
  int64_t num_rows;
  int32_t num_columns;
  int32_t num_products;  // a multiple of 32
  int32_t dtype;
  int32_t instruction_set;  // for bfloat16 SOFTWARE_TILES, AVX512_BF16 or AMX
  int32_t num_threads;
  int32_t block_bits;  // 8, 4: as legokv_cpu_pack_blocks left the weight, dtype bfloat16; else 0
  int32_t gated;       // not 0: x goes through legokv_cpu_gate first, and has no norm
  float norm_eps;
};

// silu(gate) * up of a gated MLP, in the result's type after each of both.
struct LegokvCpuGate {
  const void* x;  // [T, 2, N]: a token's gates, then its ups
  void* out;      // [T, N]
  int64_t num_rows;
  int32_t num_columns;
  int32_t dtype;
  int32_t instruction_set;
  int32_t num_threads;
};

// x / sqrt(mean(x^2) + eps) * weight, in the result's type before the last product and after.
struct LegokvCpuNorm {
  const void* x;       // [T, N]
  const void* weight;  // [N]
  void* out;           // [T, N]
  int64_t num_rows;
  int32_t num_columns;
  int32_t dtype;
  int32_t instruction_set;
  int32_t num_threads;
  float eps;
};

// What is asked of one row of V logits. Changes: of token change_ids[n] the logit is its own plus
// bias; above 0 it is divided by the divisor, else multiplied; then what is taken is subtracted.
struct LegokvCpuDrawRow {
  const void* values;      // [V]
  const uint8_t* allowed;  // [V], 0 or 1; null: all
  const int64_t* change_ids;
  const double* bias;
  const double* divisor;
  const double* taken;
  const int64_t* banned_ids;
  int64_t num_changes;
  int64_t num_banned;
  int64_t top_k;       // 0: all
  double temperature;  // 0: the first of the likeliest
  double top_p;
  double min_p;
  double place;  // from 0 to 1: the random number
};

// Tokens drawn of R rows of V logits: weights are those of softmax at the temperature, and tokens
// stand in the order of their ids when the random number chooses.
struct LegokvCpuDraw {
  const struct LegokvCpuDrawRow* rows;  // [R]
  int64_t* out;                         // [R]; -1 for a row with a logit that is no finite number
  int64_t num_rows;
  int32_t num_tokens;
  int32_t dtype;     // float32 or bfloat16
  int32_t is_exact;  // not 0: every row by exact weights, which gives the same tokens
  int32_t instruction_set;
  int32_t num_threads;
};

// A step for the next three; null if it is refused. One thread at a time may use it.
void* legokv_cpu_begin(const struct LegokvCpuStep* step);

// Makes a step that is over the one behind it, without planning it anew: 1 where all sequences go
// on by one token each and their tables only grew, as those of answers do. Else 0: it is to be
// freed, and another begun.
int legokv_cpu_advance(void* begun, const struct LegokvCpuStep* step);

// Writes the tokens' K and V into the pool, then attends over the page table.
void legokv_cpu_attend(void* begun, const struct LegokvCpuLayer* layer);

// The LegokvInstructionSet that runs.
int legokv_cpu_instruction_set(const void* begun);

// How many keys each KV head of a layer brings to its rows, each as often as it is brought: once
// for all sequences that share it, once for each tile of a longer piece.
int64_t legokv_cpu_num_keys_read(const void* begun);

// Frees the step.
void legokv_cpu_end(void* begun);

// Puts M stored pages into the pool. Returns a LegokvStatus.
int legokv_cpu_kv_import(const struct LegokvKvImport* import, int num_threads);

// Copies M pages in each layer. A page outside the pool is refused. Returns a LegokvStatus.
int legokv_cpu_copy_pages(const struct LegokvCpuPageCopy* copy);

// Moves the documents by the mean of what their recomputed tokens moved, shrunk by its noise, keys
// before rotation (legokv/ops/drift.py has the formula). Before legokv_cpu_attend writes the
// tokens. Returns a LegokvStatus.
int legokv_cpu_drift(const struct LegokvCpuDrift* drift);

// Elements of a packed weight [N, K], 64-aligned; 0 where K is no multiple of 32.
int64_t legokv_cpu_packed_elements(int32_t num_columns, int32_t num_products);

// Lays a weight [N, K] of float32 or bfloat16 out. Returns a LegokvStatus.
int legokv_cpu_pack_weight(const void* weight, int32_t num_columns, int32_t num_products,
                           int32_t dtype, void* packed);

// Bytes of a weight [N, K] in numbers of 8 or 4 bits with its scales, 64-aligned; 0 for other bits,
// or where K is no multiple of 32.
int64_t legokv_cpu_block_bytes(int32_t num_columns, int32_t num_products, int32_t block_bits);

// Lays a weight [N, K] out, -128 to 127, or -8 to 7 for 4 bits, and its float16 scales [N, K / 32]:
// a product is its number times its scale, rounded to bfloat16. Returns a LegokvStatus.
int legokv_cpu_pack_blocks(const int8_t* weight, const void* scales, int32_t num_columns,
                           int32_t num_products, int32_t block_bits, void* packed);

// Computes `count` linear layers one after another, so that one may read what those before it
// wrote; the first that is refused ends it. Returns a LegokvStatus.
int legokv_cpu_multiply(const struct LegokvCpuLinear* linears, int32_t count);

// Returns a LegokvStatus.
int legokv_cpu_gate(const struct LegokvCpuGate* gate);

// Returns a LegokvStatus.
int legokv_cpu_norm(const struct LegokvCpuNorm* norm);

// Returns a LegokvStatus.
int legokv_cpu_draw(const struct LegokvCpuDraw* draw);

// Whether this library and this processor multiply rows of a LegokvDtype by a LegokvInstructionSet.
int legokv_cpu_multiplies(int instruction_set, int dtype);

// Whether this library and this processor attend by a LegokvInstructionSet.
int legokv_cpu_has(int instruction_set);

// The LegokvInstructionSet that BEST stands for with pools of a LegokvDtype.
int legokv_cpu_best(int dtype);

// What the last failed call of this thread had to say.
const char* legokv_cpu_last_error(void);

#ifdef __cplusplus
}
#endif
