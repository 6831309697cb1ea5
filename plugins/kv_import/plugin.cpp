// KvImport for TensorRT: shapes, types and the alias of the pool; the work is legokv_kv_import's.
#include <NvInferRuntime.h>

#include <cstdio>

#include "kv_import/signature.h"
#include "legokv/building.h"
#include "legokv/launchers.h"

namespace legokv {
namespace {

using namespace nvinfer1;

#define LEGOKV_ENUMERATOR(name) k_##name,
enum Input { KV_IMPORT_INPUTS(LEGOKV_ENUMERATOR) kNumInputs };
enum Output { KV_IMPORT_OUTPUTS(LEGOKV_ENUMERATOR) kNumOutputs };
#undef LEGOKV_ENUMERATOR

constexpr char kName[] = "KvImport";
constexpr char kVersion[] = "1";
constexpr char kNamespace[] = "legokv";

bool is_cache_type(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

int32_t dtype_of(DataType type) {
  if (type == DataType::kHALF) return LEGOKV_FLOAT16;
  return type == DataType::kBF16 ? LEGOKV_BFLOAT16 : LEGOKV_FLOAT32;
}

// TensorRT has no channel for a plugin's reasons, so they go to standard error.
int32_t refuse(const char* reason) {
  fprintf(stderr, "legokv %s: %s\n", kName, reason);
  return 1;
}

class KvImportPlugin final : public IPluginV3,
                             public IPluginV3OneCore,
                             public IPluginV3OneBuildV2,
                             public IPluginV3OneRuntime {
 public:
  IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kBUILD:
        return static_cast<IPluginV3OneBuildV2*>(this);
      case PluginCapabilityType::kRUNTIME:
        return static_cast<IPluginV3OneRuntime*>(this);
      default:
        return static_cast<IPluginV3OneCore*>(this);
    }
  }
  IPluginV3* clone() noexcept override { return new KvImportPlugin(*this); }
  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return kNumOutputs; }
  int32_t getAliasedInput(int32_t) noexcept override { return k_pool; }

  int32_t getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs,
                             int32_t num_inputs) const noexcept override {
    if (num_inputs != kNumInputs) return refuse("takes pool, block and pages");
    outputs[k_pool_out] = inputs[k_pool];
    return 0;
  }

  int32_t getOutputShapes(const DimsExprs* inputs, int32_t, const DimsExprs*, int32_t,
                          DimsExprs* outputs, int32_t, IExprBuilder&) noexcept override {
    outputs[k_pool_out] = inputs[k_pool];
    return 0;
  }

  bool supportsFormatCombination(int32_t place, const DynamicPluginTensorDesc* tensors,
                                 int32_t num_inputs, int32_t) noexcept override {
    const PluginTensorDesc& tensor = tensors[place].desc;
    if (tensor.format != TensorFormat::kLINEAR) return false;
    if (place == k_pages) return tensor.type == DataType::kINT32;
    if (place == num_inputs + k_pool_out) return tensor.type == tensors[k_pool].desc.type;
    return is_cache_type(tensor.type);
  }

  int32_t configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t,
                          const DynamicPluginTensorDesc*, int32_t) noexcept override {
    if (inputs[k_pool].desc.dims.nbDims != 5 || inputs[k_block].desc.dims.nbDims != 5) {
      return refuse("pool and block have 5 dimensions: pages, 2, page size, KV heads, head size");
    }
    return 0;
  }

  int32_t onShapeChange(const PluginTensorDesc* inputs, int32_t, const PluginTensorDesc*,
                        int32_t) noexcept override {
    const Dims &pool = inputs[k_pool].dims, &block = inputs[k_block].dims;
    for (int i = 1; i < 5; ++i) {
      if (pool.d[i] != block.d[i])
        return refuse("a page of the block is not shaped like the pool's");
    }
    return inputs[k_pages].dims.d[0] == block.d[0]
               ? 0
               : refuse("pages and block differ in how many pages arrive");
  }

  int32_t enqueue(const PluginTensorDesc* inputs, const PluginTensorDesc*,
                  const void* const* tensors, void* const* outputs, void*,
                  cudaStream_t stream) noexcept override {
    if (outputs[k_pool_out] != tensors[k_pool]) {
      return refuse("pool and pool_out must be bound to one address");
    }
    if (is_building()) return 0;
    const Dims& pool = inputs[k_pool].dims;
    LegokvKvImport import = {};
    import.pool = outputs[k_pool_out];
    import.block = tensors[k_block];
    import.pages = static_cast<const int32_t*>(tensors[k_pages]);
    import.num_pool_pages = pool.d[0];
    import.num_import_pages = inputs[k_block].dims.d[0];
    import.num_layers = 1;
    import.half_elements = pool.d[2] * pool.d[3] * pool.d[4];
    import.value_stride = import.last_elements = import.half_elements;
    import.page_stride = 2 * import.half_elements;
    import.pool_dtype = dtype_of(inputs[k_pool].type);
    import.block_dtype = dtype_of(inputs[k_block].type);
    return legokv_kv_import(&import, stream) == LEGOKV_OK ? 0 : refuse(legokv_last_error());
  }

  const PluginFieldCollection* getFieldsToSerialize() noexcept override { return &fields_; }

 private:
  PluginFieldCollection fields_ = {0, nullptr};
};

class KvImportCreator final : public IPluginCreatorV3One {
 public:
  IPluginV3* createPlugin(const char*, const PluginFieldCollection*,
                          TensorRTPhase) noexcept override {
    return new KvImportPlugin();
  }
  const PluginFieldCollection* getFieldNames() noexcept override { return &fields_; }
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  PluginFieldCollection fields_ = {0, nullptr};
};

}  // namespace

IPluginCreatorInterface* kv_import_creator() {
  static KvImportCreator creator;
  return &creator;
}

}  // namespace legokv
