// The library's plain C interface: what a program without TensorRT calls, with device pointers.
//
// Legend of shapes: T tokens, B sequences, P rows of a page table, N pool pages, S page size,
// H query heads, G KV heads, D head size, M imported pages. Tensors are contiguous, but for what
// the strides say.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum LegokvDtype { LEGOKV_FLOAT32 = 0, LEGOKV_FLOAT16 = 1, LEGOKV_BFLOAT16 = 2 };

// Which attention kernel runs. AUTO chooses by shape; the others are for tests and measurements.
enum LegokvRegime {
  LEGOKV_AUTO = 0,
  LEGOKV_REFERENCE = 1,  // one warp a query row, any dtype: slow and easy to see correct
  LEGOKV_SPLIT = 2,      // split over keys, few query rows, any dtype
  LEGOKV_TILED = 3,      // tensor cores, many query rows, 16-bit dtypes
  LEGOKV_MIXED = 4,      // each sequence by SPLIT or TILED, by its own number of query rows
};

// What a launcher returns; legokv_last_error() has the sentence.
enum LegokvStatus { LEGOKV_OK = 0, LEGOKV_INVALID_ARGUMENT = 1, LEGOKV_CUDA_ERROR = 2 };

// Puts M stored pages of L layers into their pools; `block` may lie in device or in pinned host
// memory. Keys and values of a page are each one run of half_elements there, and the strides say
// how far apart: [L, M, 2, S, G, D] has them as well as [L, 2, n, G, D], the form of the tiers.
struct LegokvKvImport {
  void* pool;            // [L, N, 2, S, G, D] of pool_dtype, 16-byte aligned
  const void* block;     // of block_dtype, 16-byte aligned
  const int32_t* pages;  // [M]; a page outside the pool is not written
  int64_t num_layers;
  int64_t num_pool_pages;
  int64_t num_import_pages;
  int64_t half_elements;  // S * G * D; it, the strides and last_elements are multiples of 8
  int64_t layer_stride;   // in elements of the block: from a layer to the next
  int64_t value_stride;   // from keys to values
  int64_t page_stride;    // from a page to the next
  int64_t last_elements;  // of the last page's half that the block has; zeros are put for the rest
  int32_t pool_dtype;
  int32_t block_dtype;
};

// Writes the tokens' K and V into the pool, then attends over the page table. A page outside the
// pool has no keys, and nothing outside the tensors is touched whatever the tables say. q, k, v,
// pool, pages, out and workspace are 16-byte aligned.
struct LegokvLegolinkAttention {
  const void* q;     // [T, H, D], not rotated
  const void* k;     // [T, G, D], not rotated
  const void* v;     // [T, G, D]
  int64_t q_stride;  // in elements: from a token's heads to the next token's; a multiple of 8
  int64_t k_stride;  // the same
  int64_t v_stride;
  void* pool;                    // [N, 2, S, G, D]
  void* out;                     // [T, H, D]
  const int32_t* positions;      // [T], ascending within a sequence
  const int32_t* key_positions;  // [T]
  const int32_t* slots;          // [T]; a slot outside the pool is not written
  const int32_t* query_start;    // [B + 1], ascending from 0
  const int32_t* pages;          // [B, P, 4]: page, base, position of slot 0, filled slots
  const float* inv_freq;         // [D / 2]
  // What LegokvSharing lists, if there are shared tiles; `pages` are its own_pages then.
  const int32_t* shared_tiles;    // [X, 4]
  const int32_t* shared_members;  // [Y, 4]
  const int32_t* shared_pages;    // [Z, 4]
  const int32_t* shared_start;    // [T + 1]
  void* workspace;
  int64_t workspace_bytes;
  int64_t num_pool_pages;
  int32_t num_tokens;
  int32_t num_sequences;
  int32_t num_table_rows;
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t head_size;
  int32_t page_size;
  int32_t dtype;
  int32_t regime;
  int32_t num_splits;        // of the keys; 0: as many as keep a large GPU busy
  int32_t num_shared_tiles;  // 0: nothing is shared; else of 16-bit dtypes alone
  int32_t num_shared_members;
  int32_t num_shared_pages;
  float scale;
};

// Lists the pages that sequences of few tokens have in common, at whatever bases, so that each is
// read once for many query rows. All pointers are the host's, and none is kept. The lists have room
// for X tiles, Y members and Z pages: what finds none is not shared, and unused entries are -1, so
// a captured graph of these sizes may run with other lists.
struct LegokvSharing {
  const int32_t* positions;    // [T]
  const int32_t* query_start;  // [B + 1]
  const int32_t* pages;        // [B, P, 4]
  int32_t* own_pages;          // [B, P, 4]: what each sequence still reads alone, then empty rows
  int32_t* shared_tiles;       // [X, 4]: first page, pages, first member, members
  int32_t* shared_members;     // [Y, 4]: token, base, place of its partial result, 0
  int32_t* shared_pages;       // [Z, 4]: page, 0, a position before all others, filled slots
  int32_t* shared_start;       // [T + 1]: where each token's places begin
  int64_t num_pool_pages;
  int32_t num_tokens;
  int32_t num_sequences;
  int32_t num_table_rows;
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t head_size;
  int32_t page_size;
  int32_t max_tiles;    // X
  int32_t max_members;  // Y
  int32_t max_pages;    // Z
  int32_t num_tiles;    // from here on what was found
  int32_t num_members;
  int32_t num_pages;
  int32_t num_own_rows;  // the most that one sequence still reads alone
};

// All enqueue on `stream` (a cudaStream_t) and return a LegokvStatus. Nothing is allocated.
int legokv_kv_import(const struct LegokvKvImport* import, void* stream);
int legokv_legolink_attention(const struct LegokvLegolinkAttention* attention, void* stream);

// The same, and the mass [B, P, S] of each slot: the sum of the weights that it has in the
// attention of the query heads of the last `scoring` [B] tokens of its sequence. Without shared
// tiles: `pages` must have all that a sequence sees.
int legokv_scored_attention(const struct LegokvLegolinkAttention* attention, const int32_t* scoring,
                            float* mass, void* stream);

// Bytes of workspace the calls need; pointers and positions are not read.
int64_t legokv_legolink_attention_workspace(const struct LegokvLegolinkAttention* attention);
int64_t legokv_scored_attention_workspace(const struct LegokvLegolinkAttention* attention);

// Fills the lists, and says what was found. Enqueues nothing.
int legokv_list_shared(struct LegokvSharing* sharing);

// What the last failed call of this thread had to say.
const char* legokv_last_error(void);

// JSON: version, form, head sizes, page sizes, dtypes, architectures, layouts of the structs.
const char* legokv_library_info(void);

#ifdef __cplusplus
}
#endif
