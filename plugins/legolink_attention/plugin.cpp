// LegoLinkAttention and ScoredAttention for TensorRT: shapes, types, the alias of the pool and the
// scale; the work is legokv_legolink_attention's and legokv_scored_attention's. The second has all
// that the first has, and one input and one output behind it.
#include <NvInferRuntime.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <initializer_list>

#include "legokv/building.h"
#include "legokv/launchers.h"
#include "legolink_attention/plan.h"
#include "scored_attention/signature.h"

namespace legokv {
namespace {

using namespace nvinfer1;

#define LEGOKV_ENUMERATOR(name) k_##name,
enum Input { SCORED_ATTENTION_INPUTS(LEGOKV_ENUMERATOR) kNumInputs };
enum Output { SCORED_ATTENTION_OUTPUTS(LEGOKV_ENUMERATOR) kNumOutputs };
enum Attribute { SCORED_ATTENTION_ATTRIBUTES(LEGOKV_ENUMERATOR) kNumAttributes };
#undef LEGOKV_ENUMERATOR

#define LEGOKV_STRING(name) #name,
constexpr const char* kAttributeNames[] = {SCORED_ATTENTION_ATTRIBUTES(LEGOKV_STRING)};
#undef LEGOKV_STRING
constexpr int kInputRanks[kNumInputs] = {3, 3, 3, 5, 1, 1, 1, 1, 3, 1, 1};

constexpr char kVersion[] = "1";
constexpr char kNamespace[] = "legokv";

// Which of the two ops a plugin is.
struct Op {
  const char* name;
  int32_t num_inputs;
  int32_t num_outputs;

  bool is_scored() const { return num_outputs == kNumOutputs; }

  // TensorRT has no channel for a plugin's reasons, so they go to standard error.
  int32_t refuse(const char* reason) const {
    fprintf(stderr, "legokv %s: %s\n", name, reason);
    return 1;
  }
};

constexpr Op kLegoLinkAttention = {"LegoLinkAttention", k_scoring, k_mass};
constexpr Op kScoredAttention = {"ScoredAttention", kNumInputs, kNumOutputs};

int32_t dtype_of(DataType type) {
  if (type == DataType::kHALF) return LEGOKV_FLOAT16;
  return type == DataType::kBF16 ? LEGOKV_BFLOAT16 : LEGOKV_FLOAT32;
}

int32_t extent(const Dims& dims, int axis) { return static_cast<int32_t>(dims.d[axis]); }

// Sizes of a call from its inputs' dimensions, `dims_of(input)`.
template <typename DimsOf>
LegokvLegolinkAttention sizes(DimsOf dims_of, DataType type, float scale) {
  const Dims q = dims_of(k_q), pool = dims_of(k_pool), pages = dims_of(k_pages);
  LegokvLegolinkAttention attention = {};
  attention.num_pool_pages = pool.d[0];
  attention.page_size = extent(pool, 2);
  attention.num_kv_heads = extent(pool, 3);
  attention.head_size = extent(pool, 4);
  attention.num_tokens = extent(q, 0);
  attention.num_heads = extent(q, 1);
  attention.num_sequences = extent(pages, 0);
  attention.num_table_rows = extent(pages, 1);
  attention.q_stride = int64_t{attention.num_heads} * attention.head_size;
  attention.k_stride = attention.v_stride = int64_t{attention.num_kv_heads} * attention.head_size;
  attention.dtype = dtype_of(type);
  attention.scale = scale;
  return attention;
}

LegokvLegolinkAttention largest_sizes(const DynamicPluginTensorDesc* inputs) {
  return sizes([&](int i) { return inputs[i].max; }, inputs[k_q].desc.type, 0);
}

// The first input whose dimensions don't fit the pool and the query, or null.
const char* misfit(const Op& op, const PluginTensorDesc* inputs, const LegokvLegolinkAttention& a) {
  const Dims &q = inputs[k_q].dims, &k = inputs[k_k].dims, &v = inputs[k_v].dims;
  if (q.d[2] != a.head_size) return "q's head size is not the pool's";
  if (k.d[0] != q.d[0] || k.d[1] != a.num_kv_heads || k.d[2] != a.head_size) {
    return "k is not [tokens, KV heads, head size]";
  }
  if (v.d[0] != k.d[0] || v.d[1] != k.d[1] || v.d[2] != k.d[2]) return "v is not shaped like k";
  for (const int of_tokens : {k_positions, k_key_positions, k_slots}) {
    if (inputs[of_tokens].dims.d[0] != q.d[0]) return "a table of tokens is not as long as q";
  }
  if (inputs[k_query_start].dims.d[0] != a.num_sequences + 1) {
    return "query_start has not one entry more than there are sequences";
  }
  if (inputs[k_pages].dims.d[2] != 4) return "a row of pages has not 4 numbers";
  if (op.is_scored() && inputs[k_scoring].dims.d[0] != a.num_sequences) {
    return "scoring has not one entry for each sequence";
  }
  return inputs[k_inv_freq].dims.d[0] * 2 == a.head_size ? nullptr
                                                         : "inv_freq is not half a head long";
}

class AttentionPlugin final : public IPluginV3,
                              public IPluginV3OneCore,
                              public IPluginV3OneBuildV2,
                              public IPluginV3OneRuntime {
 public:
  AttentionPlugin(const Op& op, float scale) : op_(op), scale_(scale) {}
  AttentionPlugin(const AttentionPlugin& other) : AttentionPlugin(other.op_, other.scale_) {}

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
  IPluginV3* clone() noexcept override { return new AttentionPlugin(*this); }
  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return op_.num_outputs; }
  int32_t getAliasedInput(int32_t output) noexcept override {
    return output == k_pool_out ? k_pool : -1;
  }

  int32_t getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs,
                             int32_t num_inputs) const noexcept override {
    if (num_inputs != op_.num_inputs) return refuse("has not as many inputs as its op");
    outputs[k_out] = inputs[k_q];
    outputs[k_pool_out] = inputs[k_pool];
    if (op_.is_scored()) outputs[k_mass] = DataType::kFLOAT;
    return 0;
  }

  int32_t getOutputShapes(const DimsExprs* inputs, int32_t, const DimsExprs*, int32_t,
                          DimsExprs* outputs, int32_t, IExprBuilder&) noexcept override {
    outputs[k_out] = inputs[k_q];
    outputs[k_pool_out] = inputs[k_pool];
    if (op_.is_scored()) {
      outputs[k_mass] = inputs[k_pages];
      outputs[k_mass].d[2] = inputs[k_pool].d[2];
    }
    return 0;
  }

  bool supportsFormatCombination(int32_t place, const DynamicPluginTensorDesc* tensors, int32_t,
                                 int32_t) noexcept override {
    const PluginTensorDesc& tensor = tensors[place].desc;
    if (tensor.format != TensorFormat::kLINEAR) return false;
    const int32_t output = place - op_.num_inputs;
    if (place == k_inv_freq || output == k_mass) return tensor.type == DataType::kFLOAT;
    if (output < 0 && place >= k_positions) return tensor.type == DataType::kINT32;
    if (place != k_q) return tensor.type == tensors[k_q].desc.type;
    return tensor.type == DataType::kFLOAT || tensor.type == DataType::kHALF ||
           tensor.type == DataType::kBF16;
  }

  int32_t configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t,
                          const DynamicPluginTensorDesc*, int32_t) noexcept override {
    for (int i = 0; i < op_.num_inputs; ++i) {
      if (inputs[i].desc.dims.nbDims != kInputRanks[i]) return refuse("an input has a wrong rank");
    }
    return refuse_or_accept(check_attention_shape(largest_sizes(inputs)));
  }

  size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t,
                          const DynamicPluginTensorDesc*, int32_t) const noexcept override {
    const LegokvLegolinkAttention largest = largest_sizes(inputs);
    const int64_t norms = op_.is_scored() ? legokv_scored_attention_workspace(&largest) : 0;
    return static_cast<size_t>(std::max(max_workspace_bytes(largest), norms));
  }

  int32_t onShapeChange(const PluginTensorDesc* inputs, int32_t, const PluginTensorDesc*,
                        int32_t) noexcept override {
    const LegokvLegolinkAttention attention = actual_sizes(inputs);
    if (const char* reason = misfit(op_, inputs, attention)) return refuse(reason);
    return refuse_or_accept(check_attention_shape(attention));
  }

  int32_t enqueue(const PluginTensorDesc* inputs, const PluginTensorDesc*,
                  const void* const* tensors, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override {
    if (outputs[k_pool_out] != tensors[k_pool]) {
      return refuse("pool and pool_out must be bound to one address");
    }
    if (is_building()) return 0;
    const auto table = [&](Input input) { return static_cast<const int32_t*>(tensors[input]); };
    LegokvLegolinkAttention attention = actual_sizes(inputs);
    attention.q = tensors[k_q];
    attention.k = tensors[k_k];
    attention.v = tensors[k_v];
    attention.pool = outputs[k_pool_out];
    attention.out = outputs[k_out];
    attention.positions = table(k_positions);
    attention.key_positions = table(k_key_positions);
    attention.slots = table(k_slots);
    attention.query_start = table(k_query_start);
    attention.pages = table(k_pages);
    attention.inv_freq = static_cast<const float*>(tensors[k_inv_freq]);
    attention.workspace = workspace;
    // What getWorkspaceSize() asked for, or less.
    attention.workspace_bytes = op_.is_scored() ? legokv_scored_attention_workspace(&attention)
                                                : workspace_bytes(attention);
    const int status = op_.is_scored()
                           ? legokv_scored_attention(&attention, table(k_scoring),
                                                     static_cast<float*>(outputs[k_mass]), stream)
                           : legokv_legolink_attention(&attention, stream);
    return status == LEGOKV_OK ? 0 : refuse(legokv_last_error());
  }

  const PluginFieldCollection* getFieldsToSerialize() noexcept override { return &fields_; }

 private:
  int32_t refuse(const char* reason) const { return op_.refuse(reason); }

  int32_t refuse_or_accept(Status status) const {
    return status == Status::kOk ? 0 : refuse(last_error());
  }

  LegokvLegolinkAttention actual_sizes(const PluginTensorDesc* inputs) const {
    return sizes([&](int i) { return inputs[i].dims; }, inputs[k_q].type, scale_);
  }

  const Op op_;
  float scale_;
  PluginField field_ = {kAttributeNames[k_scale], &scale_, PluginFieldType::kFLOAT32, 1};
  PluginFieldCollection fields_ = {kNumAttributes, &field_};
};

class AttentionCreator final : public IPluginCreatorV3One {
 public:
  explicit AttentionCreator(const Op& op) : op_(op) {}

  IPluginV3* createPlugin(const char*, const PluginFieldCollection* fields,
                          TensorRTPhase) noexcept override {
    for (int i = 0; i < fields->nbFields; ++i) {
      const PluginField& field = fields->fields[i];
      if (strcmp(field.name, kAttributeNames[k_scale]) != 0) continue;
      if (field.type != PluginFieldType::kFLOAT32 || field.length != 1) break;
      return new AttentionPlugin(op_, *static_cast<const float*>(field.data));
    }
    op_.refuse("needs the attribute scale, one float");
    return nullptr;
  }
  const PluginFieldCollection* getFieldNames() noexcept override { return &fields_; }
  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  const Op op_;
  PluginField field_ = {kAttributeNames[k_scale], nullptr, PluginFieldType::kFLOAT32, 1};
  PluginFieldCollection fields_ = {kNumAttributes, &field_};
};

}  // namespace

IPluginCreatorInterface* legolink_attention_creator() {
  static AttentionCreator creator(kLegoLinkAttention);
  return &creator;
}

IPluginCreatorInterface* scored_attention_creator() {
  static AttentionCreator creator(kScoredAttention);
  return &creator;
}

}  // namespace legokv
