// The plugin objects as TensorRT drives them, over the kernels' host form: their tensors are a
// CPU's.
#include "legokv/numbers.h"
#include "plugin_step.h"

namespace legokv {

void run_packed_plugins();

namespace {

void attention_reads_and_writes_the_tensors_it_is_given() {
  const float scale = 0.125f;
  Plugin plugin = attention_plugin(&scale);
  AttentionStep step;
  EXPECT_EQUAL(enqueue(plugin, step, step.pool.data()), 0);
  expect_means(step);
  EXPECT_EQUAL(step.pool[kPageElements - 1], 9.0f);
  EXPECT_EQUAL(step.pool[kPageElements + kPageElements / 2 + 2 * kHeadSize], 6.0f);
}

void a_plugin_made_again_from_its_own_fields_does_the_same() {
  const float scale = 0.125f;
  Plugin plugin = attention_plugin(&scale);
  Plugin clone(plugin.plugin->clone());
  const PluginFieldCollection& fields = *clone.runtime().getFieldsToSerialize();
  EXPECT_EQUAL(fields.nbFields, 1);
  EXPECT_EQUAL(*static_cast<const float*>(fields.fields[0].data), scale);
  Plugin again(creator("LegoLinkAttention").createPlugin("x", &fields, TensorRTPhase::kRUNTIME));
  Plugin attached(again.runtime().attachToContext(nullptr));
  AttentionStep step;
  EXPECT_EQUAL(enqueue(attached, step, step.pool.data()), 0);
  expect_means(step);
}

void a_pool_that_is_not_aliased_is_refused() {
  const float scale = 1;
  Plugin plugin = attention_plugin(&scale);
  AttentionStep step;
  std::vector<float> other = step.pool;
  EXPECT_EQUAL(enqueue(plugin, step, other.data()), 1);
  EXPECT_EQUAL(step.out[0], -1.0f);
}

void while_a_plan_is_built_nothing_is_launched() {
  const float scale = 0.125f;
  Plugin plugin = attention_plugin(&scale);
  AttentionStep step;
  const std::vector<float> before = step.pool;
  setenv("LEGOKV_BUILDING_PLAN", "1", 1);
  EXPECT_EQUAL(enqueue(plugin, step, step.pool.data()), 0);
  unsetenv("LEGOKV_BUILDING_PLAN");
  EXPECT_EQUAL(step.pool == before, true);
  EXPECT_EQUAL(enqueue(plugin, step, step.pool.data()), 0);
  expect_means(step);
}

// The last two of three tokens score, of two heads each: one sees two keys, one all three.
void scored_attention_sums_the_weights_of_the_rows_that_score() {
  const float scale = 0.125f;
  Plugin plugin = attention_plugin(&scale, "ScoredAttention");
  EXPECT_EQUAL(plugin.build().getNbOutputs(), 3);
  AttentionStep step;
  const std::vector<PluginTensorDesc> inputs = scored_inputs(DataType::kFLOAT);
  const PluginTensorDesc outputs[] = {inputs[0], inputs[3],
                                      tensor(DataType::kFLOAT, {1, 1, kPageSize})};
  const int32_t scoring[] = {2};
  std::vector<const void*> from = step.inputs();
  from.push_back(scoring);
  std::vector<float> mass(kPageSize, -1);
  void* const to[] = {step.out.data(), step.pool.data(), mass.data()};
  EXPECT_EQUAL(plugin.runtime().onShapeChange(inputs.data(), 11, outputs, 3), 0);
  const size_t size = plugin.build().getWorkspaceSize(dynamic(inputs).data(), 11, nullptr, 3);
  EXPECT_EQUAL(size >= kTokens * kHeads * 2 * sizeof(float), true);
  std::vector<char> workspace(size);
  EXPECT_EQUAL(
      plugin.runtime().enqueue(inputs.data(), outputs, from.data(), to, workspace.data(), nullptr),
      0);
  expect_means(step);
  const float expected[] = {5.0f / 3, 5.0f / 3, 2.0f / 3};
  for (int slot = 0; slot < kPageSize; ++slot) {
    EXPECT_NEAR(mass[slot], slot < 3 ? expected[slot] : 0.0f, 1e-6);
  }
}

void scores_are_float32_of_whatever_type_and_as_many_as_sequences() {
  const float scale = 1;
  Plugin plugin = attention_plugin(&scale, "ScoredAttention");
  std::vector<PluginTensorDesc> all = scored_inputs(DataType::kBF16);
  DataType types[11], found[3];
  for (int i = 0; i < 11; ++i) types[i] = all[i].type;
  EXPECT_EQUAL(plugin.build().getOutputDataTypes(found, 3, types, 11), 0);
  EXPECT_EQUAL(found[0] == DataType::kBF16 && found[1] == DataType::kBF16, true);
  EXPECT_EQUAL(found[2] == DataType::kFLOAT, true);
  EXPECT_EQUAL(plugin.build().getOutputDataTypes(found, 3, types, 10), 1);
  EXPECT_EQUAL(plugin.runtime().onShapeChange(all.data(), 11, nullptr, 3), 0);
  for (const PluginTensorDesc& output :
       {all[0], all[3], tensor(DataType::kFLOAT, {1, 1, kPageSize})}) {
    all.push_back(output);
  }
  for (int place = 0; place < 14; ++place) {
    std::vector<DynamicPluginTensorDesc> tensors = dynamic(all);
    IPluginV3OneBuildV2& build = plugin.build();
    EXPECT_EQUAL(build.supportsFormatCombination(place, tensors.data(), 11, 3), true);
    tensors[place].desc.type = DataType::kINT8;
    EXPECT_EQUAL(build.supportsFormatCombination(place, tensors.data(), 11, 3), false);
  }
  all[10].dims.d[0] = 2;
  EXPECT_EQUAL(plugin.runtime().onShapeChange(all.data(), 11, nullptr, 3), 1);
}

void attention_without_its_scale_is_not_made() {
  const PluginFieldCollection none = {0, nullptr};
  EXPECT_EQUAL(
      creator("LegoLinkAttention").createPlugin("x", &none, TensorRTPhase::kBUILD) == nullptr,
      true);
}

void attention_takes_one_number_type_and_int32_tables() {
  const float scale = 1;
  Plugin plugin = attention_plugin(&scale);
  for (const DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
    std::vector<PluginTensorDesc> all = attention_inputs(type);
    all.push_back(all[0]);
    all.push_back(all[3]);
    for (int place = 0; place < 12; ++place) {
      std::vector<DynamicPluginTensorDesc> tensors = dynamic(all);
      IPluginV3OneBuildV2& build = plugin.build();
      EXPECT_EQUAL(build.supportsFormatCombination(place, tensors.data(), 10, 2), true);
      tensors[place].desc.type = DataType::kINT8;
      EXPECT_EQUAL(build.supportsFormatCombination(place, tensors.data(), 10, 2), false);
      tensors[place].desc.type = all[place].type;
      tensors[place].desc.format = TensorFormat::kCHW32;
      EXPECT_EQUAL(build.supportsFormatCombination(place, tensors.data(), 10, 2), false);
    }
  }
}

void only_the_pool_is_aliased() {
  const float scale = 1;
  Plugin attention = attention_plugin(&scale), import("KvImport", {0, nullptr});
  EXPECT_EQUAL(attention.build().getAliasedInput(0), -1);
  EXPECT_EQUAL(attention.build().getAliasedInput(1), 3);
  EXPECT_EQUAL(import.build().getAliasedInput(0), 0);
}

// Each change makes one input disagree with the others.
void inputs_that_do_not_fit_together_are_refused() {
  const float scale = 1;
  Plugin plugin = attention_plugin(&scale);
  struct Change {
    int input, axis, extent;
  };
  for (const Change change : {Change{0, 2, 128}, Change{1, 0, 4}, Change{1, 1, 2}, Change{2, 2, 80},
                              Change{3, 2, 48}, Change{4, 0, 2}, Change{5, 0, 4}, Change{6, 0, 2},
                              Change{7, 0, 3}, Change{8, 2, 3}, Change{9, 0, 64}}) {
    std::vector<PluginTensorDesc> inputs = attention_inputs(DataType::kHALF);
    EXPECT_EQUAL(plugin.runtime().onShapeChange(inputs.data(), 10, nullptr, 2), 0);
    inputs[change.input].dims.d[change.axis] = change.extent;
    EXPECT_EQUAL(plugin.runtime().onShapeChange(inputs.data(), 10, nullptr, 2), 1);
  }
}

void a_build_without_a_kernel_is_refused() {
  const float scale = 1;
  Plugin plugin = attention_plugin(&scale);
  std::vector<PluginTensorDesc> inputs = attention_inputs(DataType::kHALF);
  EXPECT_EQUAL(plugin.build().configurePlugin(dynamic(inputs).data(), 10, nullptr, 2), 0);
  inputs[3].dims.d[4] = 72;
  EXPECT_EQUAL(plugin.build().configurePlugin(dynamic(inputs).data(), 10, nullptr, 2), 1);
  inputs[3].dims.nbDims = 4;
  EXPECT_EQUAL(plugin.build().configurePlugin(dynamic(inputs).data(), 10, nullptr, 2), 1);
}

void import_converts_into_the_pages_it_is_given() {
  Plugin plugin("KvImport", {0, nullptr});
  std::vector<bfloat16> pool(kPages * kPageElements, from_float<bfloat16>(9));
  const std::vector<float> block(kPageElements, 2.5f);
  const int32_t pages[] = {1};
  const PluginTensorDesc inputs[] = {
      tensor(DataType::kBF16, {kPages, 2, kPageSize, kKvHeads, kHeadSize}),
      tensor(DataType::kFLOAT, {1, 2, kPageSize, kKvHeads, kHeadSize}),
      tensor(DataType::kINT32, {1})};
  const void* const from[] = {pool.data(), block.data(), pages};
  void* to[] = {pool.data()};
  EXPECT_EQUAL(plugin.runtime().onShapeChange(inputs, 3, inputs, 1), 0);
  EXPECT_EQUAL(plugin.runtime().enqueue(inputs, inputs, from, to, nullptr, nullptr), 0);
  for (int i = 0; i < kPages * kPageElements; ++i) {
    EXPECT_EQUAL(to_float(pool[i]), i < kPageElements ? 9.0f : 2.5f);
  }
  to[0] = nullptr;
  EXPECT_EQUAL(plugin.runtime().enqueue(inputs, inputs, from, to, nullptr, nullptr), 1);
}

}  // namespace
}  // namespace legokv

int main() {
  using namespace legokv;
  RUN(attention_reads_and_writes_the_tensors_it_is_given);
  RUN(a_plugin_made_again_from_its_own_fields_does_the_same);
  RUN(a_pool_that_is_not_aliased_is_refused);
  RUN(while_a_plan_is_built_nothing_is_launched);
  RUN(scored_attention_sums_the_weights_of_the_rows_that_score);
  RUN(scores_are_float32_of_whatever_type_and_as_many_as_sequences);
  RUN(attention_without_its_scale_is_not_made);
  RUN(attention_takes_one_number_type_and_int32_tables);
  RUN(only_the_pool_is_aliased);
  RUN(inputs_that_do_not_fit_together_are_refused);
  RUN(a_build_without_a_kernel_is_refused);
  RUN(import_converts_into_the_pages_it_is_given);
  run_packed_plugins();
}
