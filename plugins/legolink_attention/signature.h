// The inputs, outputs and attributes of LegoLinkAttention, once, in the order of the ONNX node; and
// those of the same op over the product that q, k and v are parts of: one input in place of three.
#pragma once

#define LEGOLINK_ATTENTION_TABLES(X) \
  X(pool) X(positions) X(key_positions) X(slots) X(query_start) X(pages) X(inv_freq)
#define LEGOLINK_ATTENTION_INPUTS(X) X(q) X(k) X(v) LEGOLINK_ATTENTION_TABLES(X)
#define LEGOLINK_ATTENTION_OUTPUTS(X) X(out) X(pool_out)
#define LEGOLINK_ATTENTION_ATTRIBUTES(X) X(scale)

#define PACKED_LEGOLINK_ATTENTION_INPUTS(X) X(qkv) LEGOLINK_ATTENTION_TABLES(X)
#define PACKED_LEGOLINK_ATTENTION_OUTPUTS(X) LEGOLINK_ATTENTION_OUTPUTS(X)
#define PACKED_LEGOLINK_ATTENTION_ATTRIBUTES(X) X(num_heads) LEGOLINK_ATTENTION_ATTRIBUTES(X)
