// A plugin as TensorRT drives it, and a small step for attention, whose tensors are a CPU's.
#pragma once

#include <NvInferRuntime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <vector>

#include "check.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& num_creators);

namespace legokv {

using namespace nvinfer1;

constexpr int kTokens = 3, kHeads = 2, kKvHeads = 1, kHeadSize = 64, kPageSize = 16, kPages = 2;
constexpr int kPageElements = 2 * kPageSize * kKvHeads * kHeadSize;

inline Dims dims(std::initializer_list<int64_t> extents) {
  Dims made = {static_cast<int32_t>(extents.size()), {}};
  int axis = 0;
  for (const int64_t extent : extents) made.d[axis++] = extent;
  return made;
}

inline PluginTensorDesc tensor(DataType type, std::initializer_list<int64_t> extents) {
  return {dims(extents), type, TensorFormat::kLINEAR, 1.0f};
}

inline std::vector<DynamicPluginTensorDesc> dynamic(const std::vector<PluginTensorDesc>& tensors) {
  std::vector<DynamicPluginTensorDesc> made;
  for (const PluginTensorDesc& one : tensors) made.push_back({one, one.dims, one.dims, one.dims});
  return made;
}

inline IPluginCreatorV3One& creator(const char* name) {
  int32_t count = 0;
  IPluginCreatorInterface* const* creators = getCreators(count);
  for (int i = 0; i < count; ++i) {
    auto& one = static_cast<IPluginCreatorV3One&>(*creators[i]);
    if (strcmp(one.getPluginName(), name) == 0) return one;
  }
  fprintf(stderr, "no creator of %s\n", name);
  exit(1);
}

// A plugin and its three faces, as TensorRT gets them.
struct Plugin {
  explicit Plugin(IPluginV3* made) : plugin(made) {}
  Plugin(const char* name, const PluginFieldCollection& fields)
      : Plugin(creator(name).createPlugin("test", &fields, TensorRTPhase::kBUILD)) {}

  template <typename Face>
  Face& face(PluginCapabilityType type) {
    return *static_cast<Face*>(plugin->getCapabilityInterface(type));
  }
  IPluginV3OneBuildV2& build() { return face<IPluginV3OneBuildV2>(PluginCapabilityType::kBUILD); }
  IPluginV3OneRuntime& runtime() {
    return face<IPluginV3OneRuntime>(PluginCapabilityType::kRUNTIME);
  }

  std::unique_ptr<IPluginV3> plugin;
};

inline Plugin attention_plugin(const float* scale, const char* name = "LegoLinkAttention") {
  const PluginField field = {"scale", scale, PluginFieldType::kFLOAT32, 1};
  return Plugin(name, {1, &field});
}

inline std::vector<PluginTensorDesc> attention_inputs(DataType number) {
  const DataType index = DataType::kINT32;
  return {tensor(number, {kTokens, kHeads, kHeadSize}),
          tensor(number, {kTokens, kKvHeads, kHeadSize}),
          tensor(number, {kTokens, kKvHeads, kHeadSize}),
          tensor(number, {kPages, 2, kPageSize, kKvHeads, kHeadSize}),
          tensor(index, {kTokens}),
          tensor(index, {kTokens}),
          tensor(index, {kTokens}),
          tensor(index, {2}),
          tensor(index, {1, 1, 4}),
          tensor(DataType::kFLOAT, {kHeadSize / 2})};
}

// One chunk of three tokens at page 1. Keys are zero, so each token's output is the mean of the
// values it sees: v is 1, 2, 6.
struct AttentionStep {
  std::vector<float> q = std::vector<float>(kTokens * kHeads * kHeadSize, 1);
  std::vector<float> k = std::vector<float>(kTokens * kKvHeads * kHeadSize, 0);
  std::vector<float> v;
  std::vector<float> pool = std::vector<float>(kPages * kPageElements, 9);
  std::vector<float> out = std::vector<float>(kTokens * kHeads * kHeadSize, -1);
  std::vector<float> inv_freq = std::vector<float>(kHeadSize / 2, 1);
  int32_t positions[kTokens] = {0, 1, 2};
  int32_t slots[kTokens] = {16, 17, 18};
  int32_t query_start[2] = {0, 3};
  alignas(16) int32_t pages[4] = {1, 0, 0, 3};

  AttentionStep() {
    for (const float value : {1.0f, 2.0f, 6.0f}) v.insert(v.end(), kHeadSize, value);
  }
  std::vector<const void*> inputs() const {
    return {q.data(),  k.data(), v.data(),    pool.data(), positions,
            positions, slots,    query_start, pages,       inv_freq.data()};
  }
};

inline int enqueue(Plugin& plugin, AttentionStep& step, void* pool_out) {
  const std::vector<PluginTensorDesc> inputs = attention_inputs(DataType::kFLOAT);
  const PluginTensorDesc outputs[] = {inputs[0], inputs[3]};
  const std::vector<const void*> from = step.inputs();
  void* const to[] = {step.out.data(), pool_out};
  EXPECT_EQUAL(plugin.runtime().onShapeChange(inputs.data(), 10, outputs, 2), 0);
  return plugin.runtime().enqueue(inputs.data(), outputs, from.data(), to, nullptr, nullptr);
}

inline void expect_means(const AttentionStep& step) {
  for (int i = 0; i < kTokens * kHeads * kHeadSize; ++i) {
    const float expected[] = {1.0f, 1.5f, 3.0f};
    EXPECT_NEAR(step.out[i], expected[i / (kHeads * kHeadSize)], 1e-6);
  }
}

inline std::vector<PluginTensorDesc> scored_inputs(DataType number) {
  std::vector<PluginTensorDesc> inputs = attention_inputs(number);
  inputs.push_back(tensor(DataType::kINT32, {1}));
  return inputs;
}

}  // namespace legokv
