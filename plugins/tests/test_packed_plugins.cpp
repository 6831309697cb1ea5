// The plugins that take q, k and v as one product, as TensorRT drives them, over the kernels' host
// form; beside them those of plans from before.
#include <random>
#include <string>

#include "legokv/numbers.h"
#include "legokv/status.h"
#include "plugin_step.h"

namespace legokv {
namespace {

constexpr int kParts = kHeads + 2 * kKvHeads;

Plugin packed_plugin(const int32_t* num_heads, const float* scale,
                     const char* name = "PackedLegoLinkAttention") {
  const PluginField fields[] = {{"num_heads", num_heads, PluginFieldType::kINT32, 1},
                                {"scale", scale, PluginFieldType::kFLOAT32, 1}};
  return Plugin(name, {2, fields});
}

// The inputs of the same op over the product: q in place of q, k and v.
std::vector<PluginTensorDesc> packed(std::vector<PluginTensorDesc> inputs) {
  inputs[0].dims.d[1] = kParts;
  inputs.erase(inputs.begin() + 1, inputs.begin() + 3);
  return inputs;
}

std::vector<const void*> packed(std::vector<const void*> tensors, const void* qkv) {
  tensors[0] = qkv;
  tensors.erase(tensors.begin() + 1, tensors.begin() + 3);
  return tensors;
}

// q, k and v of a product [kTokens, kParts, kHeadSize], each contiguous.
template <typename T>
std::vector<std::vector<T>> parts_of(const std::vector<T>& qkv) {
  std::vector<std::vector<T>> parts(3);
  for (int row = 0; row < kTokens * kParts; ++row) {
    const int head = row % kParts;
    std::vector<T>& part = parts[head < kHeads ? 0 : head < kHeads + kKvHeads ? 1 : 2];
    part.insert(part.end(), qkv.begin() + row * kHeadSize, qkv.begin() + (row + 1) * kHeadSize);
  }
  return parts;
}

// What an attention gave: its output, the pool, the mass.
template <typename T>
struct Given {
  std::vector<T> out = std::vector<T>(kTokens * kHeads * kHeadSize, from_float<T>(-1));
  std::vector<T> pool = std::vector<T>(kPages * kPageElements, from_float<T>(9));
  std::vector<float> mass = std::vector<float>(kPageSize, -1);

  bool has_the_bits_of(const Given& other) const {
    return memcmp(out.data(), other.out.data(), out.size() * sizeof(T)) == 0 &&
           memcmp(pool.data(), other.pool.data(), pool.size() * sizeof(T)) == 0 &&
           mass == other.mass;
  }
};

template <typename T>
int attend(Plugin& plugin, const std::vector<PluginTensorDesc>& inputs,
           std::vector<const void*> from, Given<T>& given) {
  void* const to[] = {given.out.data(), given.pool.data(), given.mass.data()};
  for (const void*& tensor : from) {
    if (tensor == nullptr) tensor = given.pool.data();
  }
  const int num_inputs = static_cast<int>(inputs.size());
  const int num_outputs = plugin.build().getNbOutputs();
  EXPECT_EQUAL(plugin.runtime().onShapeChange(inputs.data(), num_inputs, nullptr, num_outputs), 0);
  std::vector<char> workspace(
      plugin.build().getWorkspaceSize(dynamic(inputs).data(), num_inputs, nullptr, num_outputs));
  return plugin.runtime().enqueue(inputs.data(), nullptr, from.data(), to, workspace.data(),
                                  nullptr);
}

// By the op of `name` and by its packed one; a plugin reads its pool where nullptr stands.
template <typename T>
void expect_the_same_bits(const char* name, DataType type) {
  std::mt19937 generator(7);
  std::normal_distribution<float> normal;
  std::vector<T> qkv(kTokens * kParts * kHeadSize);
  for (T& number : qkv) number = from_float<T>(normal(generator));
  const std::vector<std::vector<T>> parts = parts_of(qkv);
  const AttentionStep step;
  const int32_t scoring[] = {2}, num_heads = kHeads;
  std::vector<const void*> tensors = step.inputs();
  for (int part = 0; part < 3; ++part) tensors[part] = parts[part].data();
  tensors[3] = nullptr;
  std::vector<PluginTensorDesc> inputs = attention_inputs(type);
  if (strcmp(name, "ScoredAttention") == 0) {
    inputs = scored_inputs(type);
    tensors.push_back(scoring);
  }
  const float scale = 0.125f;
  Plugin separate = attention_plugin(&scale, name);
  Plugin whole = packed_plugin(&num_heads, &scale, (std::string("Packed") + name).c_str());
  Given<T> expected, found;
  EXPECT_EQUAL(attend(separate, inputs, tensors, expected), 0);
  EXPECT_EQUAL(attend(whole, packed(inputs), packed(tensors, qkv.data()), found), 0);
  EXPECT_EQUAL(expected.has_the_bits_of(Given<T>()), false);
  EXPECT_EQUAL(found.has_the_bits_of(expected), true);
}

void a_product_in_one_input_gives_the_bits_of_its_parts_in_three() {
  for (const char* name : {"LegoLinkAttention", "ScoredAttention"}) {
    expect_the_same_bits<float>(name, DataType::kFLOAT);
    expect_the_same_bits<float16>(name, DataType::kHALF);
    expect_the_same_bits<bfloat16>(name, DataType::kBF16);
  }
}

void a_packed_plugin_made_again_from_its_own_fields_does_the_same() {
  const float scale = 0.125f;
  const int32_t num_heads = kHeads;
  Plugin plugin = packed_plugin(&num_heads, &scale);
  const PluginFieldCollection& fields = *plugin.runtime().getFieldsToSerialize();
  EXPECT_EQUAL(fields.nbFields, 2);
  Plugin again("PackedLegoLinkAttention", fields);
  const PluginFieldCollection& same = *again.runtime().getFieldsToSerialize();
  EXPECT_EQUAL(*static_cast<const int32_t*>(same.fields[0].data), kHeads);
  EXPECT_EQUAL(*static_cast<const float*>(same.fields[1].data), scale);
  EXPECT_EQUAL(again.build().getAliasedInput(1), 1);
}

// What plans from before the packed ops have of a plugin: this name, version 1 and one field.
void a_plugin_of_an_older_plan_is_made_of_its_scale_and_takes_three_inputs() {
  const float scale = 0.125f;
  const PluginField field = {"scale", &scale, PluginFieldType::kFLOAT32, 1};
  const PluginFieldCollection fields = {1, &field};
  IPluginCreatorV3One& old = creator("LegoLinkAttention");
  EXPECT_EQUAL(strcmp(old.getPluginVersion(), "1"), 0);
  Plugin plugin(old.createPlugin("old", &fields, TensorRTPhase::kRUNTIME));
  AttentionStep step;
  EXPECT_EQUAL(enqueue(plugin, step, step.pool.data()), 0);
  expect_means(step);
  EXPECT_EQUAL(plugin.runtime().getFieldsToSerialize()->nbFields, 1);
}

void expect_last_error(const char* words) {
  if (strcmp(last_error(), words) == 0) return;
  fprintf(stderr, "\"%s\", expected \"%s\"\n", last_error(), words);
  exit(1);
}

void a_packed_plugin_is_made_of_a_whole_number_of_heads_from_1() {
  const float scale = 1;
  const int64_t wide = kHeads, too_wide = int64_t{1} << 31;
  const int32_t none = 0;
  const PluginField of_scale = {"scale", &scale, PluginFieldType::kFLOAT32, 1};
  const auto made = [&](PluginField heads) {
    const PluginField fields[] = {heads, of_scale};
    const PluginFieldCollection both = {2, fields};
    std::unique_ptr<IPluginV3> plugin(
        creator("PackedLegoLinkAttention").createPlugin("x", &both, TensorRTPhase::kBUILD));
    return plugin != nullptr;
  };
  EXPECT_EQUAL(made({"num_heads", &wide, PluginFieldType::kINT64, 1}), true);
  EXPECT_EQUAL(made({"num_heads", &too_wide, PluginFieldType::kINT64, 1}), false);
  expect_last_error(
      "needs the attribute num_heads, a whole number from 1 to 2^31 - 1, not 2147483648");
  EXPECT_EQUAL(made({"num_heads", &none, PluginFieldType::kINT32, 1}), false);
  EXPECT_EQUAL(made({"num_heads", &scale, PluginFieldType::kFLOAT32, 1}), false);
  EXPECT_EQUAL(made({"num_heads", &wide, PluginFieldType::kINT64, 2}), false);
  EXPECT_EQUAL(made(of_scale), false);
  expect_last_error("needs the attribute num_heads, a whole number from 1 to 2^31 - 1, not 0");
}

// Both when the plan is built and when it runs.
void expect_refused(int32_t num_heads, const std::vector<PluginTensorDesc>& inputs,
                    const char* words) {
  const float scale = 1;
  Plugin plugin = packed_plugin(&num_heads, &scale);
  EXPECT_EQUAL(plugin.build().configurePlugin(dynamic(inputs).data(), 8, nullptr, 2), 1);
  expect_last_error(words);
  EXPECT_EQUAL(plugin.runtime().onShapeChange(inputs.data(), 8, nullptr, 2), 1);
  expect_last_error(words);
}

void a_product_that_contradicts_its_number_of_heads_is_refused_with_the_numbers() {
  std::vector<PluginTensorDesc> inputs = packed(attention_inputs(DataType::kHALF));
  expect_refused(3, inputs,
                 "qkv has 4 heads of 64, but num_heads 3 and a pool of 1 KV heads of 64 make 5 of "
                 "64");
  inputs[0].dims.d[2] = 80;
  expect_refused(2, inputs,
                 "qkv has 4 heads of 80, but num_heads 2 and a pool of 1 KV heads of 64 make 4 of "
                 "64");
  inputs[0].dims.d[1] = 7, inputs[0].dims.d[2] = kHeadSize;
  inputs[1].dims.d[3] = 2;
  expect_refused(3, inputs, "legolink_attention: 2 KV heads do not divide 3 query heads");
}

// Of a product at an address that is no multiple of 16, q, k and v are not either.
void a_product_that_is_not_16_byte_aligned_is_refused() {
  const float scale = 1;
  const int32_t num_heads = kHeads;
  Plugin plugin = packed_plugin(&num_heads, &scale);
  const AttentionStep step;
  std::vector<float> qkv(kTokens * kParts * kHeadSize + 1, 1);
  std::vector<const void*> tensors = packed(step.inputs(), qkv.data() + 1);
  tensors[1] = nullptr;
  Given<float> given;
  EXPECT_EQUAL(attend(plugin, packed(attention_inputs(DataType::kFLOAT)), tensors, given), 1);
  expect_last_error(
      "legolink_attention: q, k, v, pool, pages, out, workspace must be 16-byte aligned");
  EXPECT_EQUAL(given.has_the_bits_of(Given<float>()), true);
}

void a_packed_plugin_takes_one_number_type_and_int32_tables_each_as_long_as_it_must() {
  const float scale = 1;
  const int32_t num_heads = kHeads;
  Plugin plugin = packed_plugin(&num_heads, &scale, "PackedScoredAttention");
  std::vector<PluginTensorDesc> inputs = packed(scored_inputs(DataType::kBF16));
  std::vector<PluginTensorDesc> all = inputs;
  for (const PluginTensorDesc& output :
       {all[0], all[1], tensor(DataType::kFLOAT, {1, 1, kPageSize})}) {
    all.push_back(output);
  }
  for (int place = 0; place < 12; ++place) {
    std::vector<DynamicPluginTensorDesc> tensors = dynamic(all);
    IPluginV3OneBuildV2& build = plugin.build();
    EXPECT_EQUAL(build.supportsFormatCombination(place, tensors.data(), 9, 3), true);
    tensors[place].desc.type = DataType::kINT8;
    EXPECT_EQUAL(build.supportsFormatCombination(place, tensors.data(), 9, 3), false);
  }
  struct Change {
    int input, axis, extent;
  };
  for (const Change change :
       {Change{1, 2, 48}, Change{2, 0, 2}, Change{3, 0, 4}, Change{4, 0, 2}, Change{5, 0, 3},
        Change{6, 2, 3}, Change{7, 0, 64}, Change{8, 0, 2}}) {
    std::vector<PluginTensorDesc> changed = inputs;
    EXPECT_EQUAL(plugin.runtime().onShapeChange(changed.data(), 9, nullptr, 3), 0);
    changed[change.input].dims.d[change.axis] = change.extent;
    EXPECT_EQUAL(plugin.runtime().onShapeChange(changed.data(), 9, nullptr, 3), 1);
  }
}

}  // namespace

void run_packed_plugins() {
  RUN(a_product_in_one_input_gives_the_bits_of_its_parts_in_three);
  RUN(a_packed_plugin_made_again_from_its_own_fields_does_the_same);
  RUN(a_plugin_of_an_older_plan_is_made_of_its_scale_and_takes_three_inputs);
  RUN(a_packed_plugin_is_made_of_a_whole_number_of_heads_from_1);
  RUN(a_product_that_contradicts_its_number_of_heads_is_refused_with_the_numbers);
  RUN(a_product_that_is_not_16_byte_aligned_is_refused);
  RUN(a_packed_plugin_takes_one_number_type_and_int32_tables_each_as_long_as_it_must);
}

}  // namespace legokv
