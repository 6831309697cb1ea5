// Which sequence a token or a tile of query rows belongs to.
//
// A sequence's query rows for one KV head are its tokens times the query heads that share it, token
// by token; a tile is a run of such rows of one sequence. Tokens after the last sequence count as
// one more sequence, which sees no page.
#pragma once

#include <cstdint>

#include "legokv/host_device.h"

namespace legokv {

struct Sequences {
  const int32_t* query_start;  // [num_sequences + 1]
  int num_sequences;
  int num_tokens;
};

// First token of sequence b; b may be num_sequences (the tokens after the last) and one more (the
// end). It is one of the tokens, or their end, whatever query_start says.
LEGOKV_HOST_DEVICE int first_token(const Sequences& sequences, int b) {
  if (b <= 0) return 0;
  if (b > sequences.num_sequences) return sequences.num_tokens;
  const int token = sequences.query_start[b];
  return token < 0 ? 0 : (token > sequences.num_tokens ? sequences.num_tokens : token);
}

// The last sequence that begins at or before the token; it is never an empty one.
LEGOKV_HOST_DEVICE int sequence_of_token(const Sequences& sequences, int token) {
  int low = 0, high = sequences.num_sequences;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (first_token(sequences, middle) <= token) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Whether a sequence has at most `few` tokens. What lies after the last sequence has not.
LEGOKV_HOST_DEVICE bool has_few_tokens(const Sequences& sequences, int b, int few) {
  return b < sequences.num_sequences &&
         first_token(sequences, b + 1) - first_token(sequences, b) <= few;
}

// Places for the tokens of such sequences, `few` for each: the token at a place, or -1 for none.
LEGOKV_HOST_DEVICE int token_at_place(const Sequences& sequences, int64_t place, int few) {
  const int b = static_cast<int>(place / few), at = static_cast<int>(place % few);
  const int first = first_token(sequences, b);
  const bool is_token = at < first_token(sequences, b + 1) - first;
  return is_token && has_few_tokens(sequences, b, few) ? first + at : -1;
}

struct QueryTile {
  int sequence;
  int token;      // first token of the sequence
  int first_row;  // first row of the tile within the sequence
  int num_rows;   // 1 ... tile size; 0: no tile
};

// An upper bound of the tiles of all sequences, known without reading query_start.
LEGOKV_HOST_DEVICE int64_t max_tiles(int num_tokens, int num_sequences, int rows_per_token,
                                     int tile_rows) {
  return int64_t{num_tokens} * rows_per_token / tile_rows + num_sequences + 1;
}

// Tiles are numbered so that sequence b starts at floor(its first row / tile_rows) + b: every
// sequence gets as many numbers as it needs, some get one more, and those tiles have no rows.
LEGOKV_HOST_DEVICE int64_t first_tile(const Sequences& sequences, int b, int rows_per_token,
                                      int tile_rows) {
  return int64_t{first_token(sequences, b)} * rows_per_token / tile_rows + b;
}

LEGOKV_HOST_DEVICE QueryTile query_tile(const Sequences& sequences, int64_t tile,
                                        int rows_per_token, int tile_rows) {
  int low = 0, high = sequences.num_sequences;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (first_tile(sequences, middle, rows_per_token, tile_rows) <= tile) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int token = first_token(sequences, low);
  const int64_t rows = int64_t{first_token(sequences, low + 1) - token} * rows_per_token;
  const int64_t first_row =
      (tile - first_tile(sequences, low, rows_per_token, tile_rows)) * tile_rows;
  const int64_t left = rows - first_row;
  const int64_t num_rows = left < 0 ? 0 : (left > tile_rows ? tile_rows : left);
  return {low, token, static_cast<int>(first_row), static_cast<int>(num_rows)};
}

}  // namespace legokv
