// The inputs, outputs and attributes of LegoLinkAttention, once, in the order of the ONNX node.
#pragma once

#define LEGOLINK_ATTENTION_INPUTS(X) \
  X(q) X(k) X(v) X(pool) X(positions) X(key_positions) X(slots) X(query_start) X(pages) X(inv_freq)
#define LEGOLINK_ATTENTION_OUTPUTS(X) X(out) X(pool_out)
#define LEGOLINK_ATTENTION_ATTRIBUTES(X) X(scale)
