// The library's two entry points for TensorRT. It never calls a registry: whoever loads the library
// registers the creators, and so one library serves every TensorRT that has IPluginV3.
#include <NvInferRuntime.h>

#include "legokv/export.h"

namespace legokv {

nvinfer1::IPluginCreatorInterface* kv_import_creator();
nvinfer1::IPluginCreatorInterface* legolink_attention_creator();
nvinfer1::IPluginCreatorInterface* scored_attention_creator();
nvinfer1::IPluginCreatorInterface* packed_legolink_attention_creator();
nvinfer1::IPluginCreatorInterface* packed_scored_attention_creator();

}  // namespace legokv

LEGOKV_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& num_creators) {
  static nvinfer1::IPluginCreatorInterface* const creators[] = {
      legokv::kv_import_creator(), legokv::legolink_attention_creator(),
      legokv::scored_attention_creator(), legokv::packed_legolink_attention_creator(),
      legokv::packed_scored_attention_creator()};
  num_creators = sizeof(creators) / sizeof(creators[0]);
  return creators;
}

// Ignored: a logger's layout differs between the libraries that load this one.
LEGOKV_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}
