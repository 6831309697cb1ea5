// The inputs, outputs and attributes of ScoredAttention, once, in the order of the ONNX node: those
// of LegoLinkAttention, and one input and one output more; and the same over one product.
#pragma once

#include "legolink_attention/signature.h"

#define SCORED_ATTENTION_INPUTS(X) LEGOLINK_ATTENTION_INPUTS(X) X(scoring)
#define SCORED_ATTENTION_OUTPUTS(X) LEGOLINK_ATTENTION_OUTPUTS(X) X(mass)
#define SCORED_ATTENTION_ATTRIBUTES(X) LEGOLINK_ATTENTION_ATTRIBUTES(X)

#define PACKED_SCORED_ATTENTION_INPUTS(X) PACKED_LEGOLINK_ATTENTION_INPUTS(X) X(scoring)
#define PACKED_SCORED_ATTENTION_OUTPUTS(X) SCORED_ATTENTION_OUTPUTS(X)
#define PACKED_SCORED_ATTENTION_ATTRIBUTES(X) PACKED_LEGOLINK_ATTENTION_ATTRIBUTES(X)
