// The inputs, outputs and attributes of KvImport, once, in the order of the ONNX node.
#pragma once

#define KV_IMPORT_INPUTS(X) X(pool) X(block) X(pages)
#define KV_IMPORT_OUTPUTS(X) X(pool_out)
#define KV_IMPORT_ATTRIBUTES(X)
