// LegoLinkAttention and ScoredAttention for TensorRT: shapes, types, the alias of the pool and the
// scale; the work is legokv_legolink_attention's and legokv_scored_attention's. The second has all
// that the first has, and one input and one output behind it. Either is also there packed: q, k and
// v are one input, the product that they are parts of, and are read from it by strides.
#include <NvInferRuntime.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>

#include "legokv/building.h"
#include "legokv/launchers.h"
#include "legolink_attention/plan.h"
#include "legolink_attention/plugin_ops.h"

namespace legokv {
namespace {

using namespace nvinfer1;

#define LEGOKV_STRING(name) #name,
constexpr const char* kAttributeNames[] = {PACKED_SCORED_ATTENTION_ATTRIBUTES(LEGOKV_STRING)};
#undef LEGOKV_STRING
constexpr int kInputRanks[kNumInputs] = {3, 3, 3, 5, 1, 1, 1, 1, 3, 1, 1};

constexpr char kVersion[] = "1";
constexpr char kNamespace[] = "legokv";

int32_t dtype_of(DataType type) {
  if (type == DataType::kHALF) return LEGOKV_FLOAT16;
  return type == DataType::kBF16 ? LEGOKV_BFLOAT16 : LEGOKV_FLOAT32;
}

int32_t extent(const Dims& dims, int axis) { return static_cast<int32_t>(dims.d[axis]); }

// Sizes of a call from its inputs' dimensions, `dims_of(place)`.
template <typename DimsOf>
LegokvLegolinkAttention sizes(const Op& op, DimsOf dims_of, DataType type, Attributes given) {
  const Dims q = dims_of(k_q), pool = dims_of(op.at(k_pool)), pages = dims_of(op.at(k_pages));
  LegokvLegolinkAttention attention = {};
  attention.num_pool_pages = pool.d[0];
  attention.page_size = extent(pool, 2);
  attention.num_kv_heads = extent(pool, 3);
  attention.head_size = extent(pool, 4);
  attention.num_tokens = extent(q, 0);
  attention.num_heads = op.is_packed ? given.num_heads : extent(q, 1);
  attention.num_sequences = extent(pages, 0);
  attention.num_table_rows = extent(pages, 1);
  attention.q_stride = q.d[1] * q.d[2];
  attention.k_stride = attention.v_stride =
      op.is_packed ? attention.q_stride : int64_t{attention.num_kv_heads} * attention.head_size;
  attention.dtype = dtype_of(type);
  attention.scale = given.scale;
  return attention;
}

// The first of q, k and v whose dimensions don't fit the pool, or null.
const char* misfit_of_parts(const PluginTensorDesc* inputs, const LegokvLegolinkAttention& a) {
  const Dims &q = inputs[k_q].dims, &k = inputs[k_k].dims, &v = inputs[k_v].dims;
  if (q.d[2] != a.head_size) return "q's head size is not the pool's";
  if (k.d[0] != q.d[0] || k.d[1] != a.num_kv_heads || k.d[2] != a.head_size) {
    return "k is not [tokens, KV heads, head size]";
  }
  const bool alike = v.d[0] == k.d[0] && v.d[1] == k.d[1] && v.d[2] == k.d[2];
  return alike ? nullptr : "v is not shaped like k";
}

// The first table whose dimensions don't fit the sizes, or null.
const char* misfit_of_tables(const Op& op, const PluginTensorDesc* inputs,
                             const LegokvLegolinkAttention& a) {
  const auto dims = [&](Input input) -> const Dims& { return inputs[op.at(input)].dims; };
  for (const Input of_tokens : {k_positions, k_key_positions, k_slots}) {
    if (dims(of_tokens).d[0] != a.num_tokens) return "a table of tokens is not as long as q";
  }
  if (dims(k_query_start).d[0] != a.num_sequences + 1) {
    return "query_start has not one entry more than there are sequences";
  }
  if (dims(k_pages).d[2] != 4) return "a row of pages has not 4 numbers";
  if (op.is_scored && dims(k_scoring).d[0] != a.num_sequences) {
    return "scoring has not one entry for each sequence";
  }
  return dims(k_inv_freq).d[0] * 2 == a.head_size ? nullptr : "inv_freq is not half a head long";
}

class AttentionPlugin final : public IPluginV3,
                              public IPluginV3OneCore,
                              public IPluginV3OneBuildV2,
                              public IPluginV3OneRuntime {
 public:
  AttentionPlugin(const Op& op, Attributes given) : op_(op), given_(given) {}
  AttentionPlugin(const AttentionPlugin& other) : AttentionPlugin(other.op_, other.given_) {}

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

  int32_t getNbOutputs() const noexcept override { return op_.num_outputs(); }
  int32_t getAliasedInput(int32_t output) noexcept override {
    return output == k_pool_out ? op_.at(k_pool) : -1;
  }

  int32_t getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs,
                             int32_t num_inputs) const noexcept override {
    if (num_inputs != op_.num_inputs()) return op_.refuse("has not as many inputs as its op");
    outputs[k_out] = inputs[k_q];
    outputs[k_pool_out] = inputs[op_.at(k_pool)];
    if (op_.is_scored) outputs[k_mass] = DataType::kFLOAT;
    return 0;
  }

  int32_t getOutputShapes(const DimsExprs* inputs, int32_t, const DimsExprs*, int32_t,
                          DimsExprs* outputs, int32_t, IExprBuilder& numbers) noexcept override {
    const DimsExprs& pool = inputs[op_.at(k_pool)];
    outputs[k_out] = inputs[k_q];
    if (op_.is_packed) outputs[k_out].d[1] = numbers.constant(given_.num_heads);
    outputs[k_pool_out] = pool;
    if (op_.is_scored) {
      outputs[k_mass] = inputs[op_.at(k_pages)];
      outputs[k_mass].d[2] = pool.d[2];
    }
    return 0;
  }

  bool supportsFormatCombination(int32_t place, const DynamicPluginTensorDesc* tensors, int32_t,
                                 int32_t) noexcept override {
    const PluginTensorDesc& tensor = tensors[place].desc;
    if (tensor.format != TensorFormat::kLINEAR) return false;
    const int32_t output = place - op_.num_inputs();
    if (place == op_.at(k_inv_freq) || output == k_mass) return tensor.type == DataType::kFLOAT;
    if (output < 0 && place >= op_.at(k_positions)) return tensor.type == DataType::kINT32;
    if (place != k_q) return tensor.type == tensors[k_q].desc.type;
    return tensor.type == DataType::kFLOAT || tensor.type == DataType::kHALF ||
           tensor.type == DataType::kBF16;
  }

  int32_t configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t,
                          const DynamicPluginTensorDesc*, int32_t) noexcept override {
    for (int i = 0; i < op_.num_parts(); ++i) {
      if (inputs[op_.at(i)].desc.dims.nbDims != kInputRanks[i]) {
        return op_.refuse("an input has a wrong rank");
      }
    }
    return op_.refuse_or_accept(check_shape(inputs[k_q].max, largest_sizes(inputs)));
  }

  size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t,
                          const DynamicPluginTensorDesc*, int32_t) const noexcept override {
    const LegokvLegolinkAttention largest = largest_sizes(inputs);
    const int64_t norms = op_.is_scored ? legokv_scored_attention_workspace(&largest) : 0;
    return static_cast<size_t>(std::max(max_workspace_bytes(largest), norms));
  }

  int32_t onShapeChange(const PluginTensorDesc* inputs, int32_t, const PluginTensorDesc*,
                        int32_t) noexcept override {
    const LegokvLegolinkAttention attention = actual_sizes(inputs);
    const char* reason = op_.is_packed ? nullptr : misfit_of_parts(inputs, attention);
    if (reason == nullptr) reason = misfit_of_tables(op_, inputs, attention);
    if (reason != nullptr) return op_.refuse(reason);
    return op_.refuse_or_accept(check_shape(inputs[k_q].dims, attention));
  }

  int32_t enqueue(const PluginTensorDesc* inputs, const PluginTensorDesc*,
                  const void* const* tensors, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override {
    if (outputs[k_pool_out] != tensors[op_.at(k_pool)]) {
      return op_.refuse("pool and pool_out must be bound to one address");
    }
    if (is_building()) return 0;
    const auto table = [&](Input input) {
      return static_cast<const int32_t*>(tensors[op_.at(input)]);
    };
    LegokvLegolinkAttention attention = actual_sizes(inputs);
    if (op_.is_packed) {
      take_parts(tensors[k_q], attention);
    } else {
      attention.q = tensors[k_q];
      attention.k = tensors[k_k];
      attention.v = tensors[k_v];
    }
    attention.pool = outputs[k_pool_out];
    attention.out = outputs[k_out];
    attention.positions = table(k_positions);
    attention.key_positions = table(k_key_positions);
    attention.slots = table(k_slots);
    attention.query_start = table(k_query_start);
    attention.pages = table(k_pages);
    attention.inv_freq = static_cast<const float*>(tensors[op_.at(k_inv_freq)]);
    attention.workspace = workspace;
    // What getWorkspaceSize() asked for, or less.
    attention.workspace_bytes =
        op_.is_scored ? legokv_scored_attention_workspace(&attention) : workspace_bytes(attention);
    const int status = op_.is_scored
                           ? legokv_scored_attention(&attention, table(k_scoring),
                                                     static_cast<float*>(outputs[k_mass]), stream)
                           : legokv_legolink_attention(&attention, stream);
    return status == LEGOKV_OK ? 0 : op_.refuse(legokv_last_error());
  }

  const PluginFieldCollection* getFieldsToSerialize() noexcept override { return &fields_; }

 private:
  Status check_shape(const Dims& q, const LegokvLegolinkAttention& attention) const {
    const Status status = check_attention_shape(attention);
    return status == Status::kOk && op_.is_packed ? check_packed(q.d, attention) : status;
  }

  LegokvLegolinkAttention largest_sizes(const DynamicPluginTensorDesc* inputs) const {
    return sizes(op_, [&](int i) { return inputs[i].max; }, inputs[k_q].desc.type, given_);
  }

  LegokvLegolinkAttention actual_sizes(const PluginTensorDesc* inputs) const {
    return sizes(op_, [&](int i) { return inputs[i].dims; }, inputs[k_q].type, given_);
  }

  const Op op_;
  const Attributes given_;
  PluginField field_[kNumAttributes] = {
      {kAttributeNames[k_num_heads], &given_.num_heads, PluginFieldType::kINT32, 1},
      {kAttributeNames[k_scale], &given_.scale, PluginFieldType::kFLOAT32, 1}};
  PluginFieldCollection fields_ = {kNumAttributes - op_.first_attribute(),
                                   field_ + op_.first_attribute()};
};

// The field of an attribute if it has one number, or null.
const PluginField* number_of(const PluginFieldCollection& fields, Attribute attribute) {
  for (int i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    if (strcmp(field.name, kAttributeNames[attribute]) == 0) {
      return field.length == 1 ? &field : nullptr;
    }
  }
  return nullptr;
}

// The whole number of a field, 0 if it has none; a parser may have it in 64 bits.
int64_t whole_number(const PluginField* field) {
  if (field == nullptr) return 0;
  if (field->type == PluginFieldType::kINT64) return *static_cast<const int64_t*>(field->data);
  return field->type == PluginFieldType::kINT32 ? *static_cast<const int32_t*>(field->data) : 0;
}

class AttentionCreator final : public IPluginCreatorV3One {
 public:
  explicit AttentionCreator(const Op& op) : op_(op) {}

  IPluginV3* createPlugin(const char*, const PluginFieldCollection* fields,
                          TensorRTPhase) noexcept override {
    const PluginField* scale = number_of(*fields, k_scale);
    if (scale == nullptr || scale->type != PluginFieldType::kFLOAT32) {
      op_.refuse("needs the attribute scale, one float");
      return nullptr;
    }
    const int64_t num_heads = op_.is_packed ? whole_number(number_of(*fields, k_num_heads)) : 0;
    if (op_.is_packed && (num_heads < 1 || num_heads > INT32_MAX)) {
      const Status status = invalid_argument(
          "needs the attribute num_heads, a whole number from 1 to 2^31 - 1, not %lld",
          static_cast<long long>(num_heads));
      op_.refuse_or_accept(status);
      return nullptr;
    }
    const Attributes given = {static_cast<int32_t>(num_heads),
                              *static_cast<const float*>(scale->data)};
    return new AttentionPlugin(op_, given);
  }
  const PluginFieldCollection* getFieldNames() noexcept override { return &fields_; }
  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  const Op op_;
  PluginField field_[kNumAttributes] = {
      {kAttributeNames[k_num_heads], nullptr, PluginFieldType::kINT32, 1},
      {kAttributeNames[k_scale], nullptr, PluginFieldType::kFLOAT32, 1}};
  PluginFieldCollection fields_ = {kNumAttributes - op_.first_attribute(),
                                   field_ + op_.first_attribute()};
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

IPluginCreatorInterface* packed_legolink_attention_creator() {
  static AttentionCreator creator(kPackedLegoLinkAttention);
  return &creator;
}

IPluginCreatorInterface* packed_scored_attention_creator() {
  static AttentionCreator creator(kPackedScoredAttention);
  return &creator;
}

}  // namespace legokv
