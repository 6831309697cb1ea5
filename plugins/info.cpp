// What the library says of itself, as JSON: contract tests compare it with the Python side.
#include <cstddef>
#include <string>

#include "kv_import/signature.h"
#include "legokv/export.h"
#include "legokv/launchers.h"
#include "legokv/status.h"
#include "legolink_attention/plan.h"
#include "scored_attention/signature.h"

namespace legokv {
namespace {

std::string quoted(const std::string& text) { return '"' + text + '"'; }

std::string member(const std::string& name, const std::string& value) {
  return quoted(name) + ": " + value;
}

std::string joined(const std::string& left, const std::string& right) {
  return left.empty() ? right : left + ", " + right;
}

// Numbers from 1 to 1024 that pass, as a JSON list.
std::string numbers_that(bool (*pass)(int)) {
  std::string list;
  for (int number = 1; number <= 1024; ++number) {
    if (pass(number)) list = joined(list, std::to_string(number));
  }
  return '[' + list + ']';
}

#define LEGOKV_NAME(name) list = joined(list, quoted(#name));
#define LEGOKV_NAMES(of)     \
  [] {                       \
    std::string list;        \
    of(LEGOKV_NAME);         \
    return '[' + list + ']'; \
  }()

#define LEGOKV_OP(name, of)                                                      \
  member(name, '{' +                                                             \
                   joined(joined(member("inputs", LEGOKV_NAMES(of##_INPUTS)),    \
                                 member("outputs", LEGOKV_NAMES(of##_OUTPUTS))), \
                          member("attributes", LEGOKV_NAMES(of##_ATTRIBUTES))) + \
                   '}')

std::string ops() {
  std::string list = LEGOKV_OP("KvImport", KV_IMPORT);
  list = joined(list, LEGOKV_OP("LegoLinkAttention", LEGOLINK_ATTENTION));
  list = joined(list, LEGOKV_OP("PackedLegoLinkAttention", PACKED_LEGOLINK_ATTENTION));
  list = joined(list, LEGOKV_OP("ScoredAttention", SCORED_ATTENTION));
  list = joined(list, LEGOKV_OP("PackedScoredAttention", PACKED_SCORED_ATTENTION));
  return '{' + list + '}';
}

template <typename Struct, typename Member>
std::string place(const char* name, Member Struct::*, size_t offset) {
  return member(name, '[' + std::to_string(offset) + ", " + std::to_string(sizeof(Member)) + ']');
}

// Of each member its offset and size in bytes.
#define LEGOKV_PLACE(type, name) \
  fields = joined(fields, place(#name, &type::name, offsetof(type, name)))

std::string kv_import_layout() {
  std::string fields;
  LEGOKV_PLACE(LegokvKvImport, pool);
  LEGOKV_PLACE(LegokvKvImport, block);
  LEGOKV_PLACE(LegokvKvImport, pages);
  LEGOKV_PLACE(LegokvKvImport, num_layers);
  LEGOKV_PLACE(LegokvKvImport, num_pool_pages);
  LEGOKV_PLACE(LegokvKvImport, num_import_pages);
  LEGOKV_PLACE(LegokvKvImport, half_elements);
  LEGOKV_PLACE(LegokvKvImport, layer_stride);
  LEGOKV_PLACE(LegokvKvImport, value_stride);
  LEGOKV_PLACE(LegokvKvImport, page_stride);
  LEGOKV_PLACE(LegokvKvImport, last_elements);
  LEGOKV_PLACE(LegokvKvImport, pool_dtype);
  LEGOKV_PLACE(LegokvKvImport, block_dtype);
  return '{' + fields + '}';
}

std::string attention_layout() {
  using Attention = LegokvLegolinkAttention;
  std::string fields;
  LEGOKV_PLACE(Attention, q);
  LEGOKV_PLACE(Attention, k);
  LEGOKV_PLACE(Attention, v);
  LEGOKV_PLACE(Attention, q_stride);
  LEGOKV_PLACE(Attention, k_stride);
  LEGOKV_PLACE(Attention, v_stride);
  LEGOKV_PLACE(Attention, pool);
  LEGOKV_PLACE(Attention, out);
  LEGOKV_PLACE(Attention, positions);
  LEGOKV_PLACE(Attention, key_positions);
  LEGOKV_PLACE(Attention, slots);
  LEGOKV_PLACE(Attention, query_start);
  LEGOKV_PLACE(Attention, pages);
  LEGOKV_PLACE(Attention, inv_freq);
  LEGOKV_PLACE(Attention, shared_tiles);
  LEGOKV_PLACE(Attention, shared_members);
  LEGOKV_PLACE(Attention, shared_pages);
  LEGOKV_PLACE(Attention, shared_start);
  LEGOKV_PLACE(Attention, workspace);
  LEGOKV_PLACE(Attention, workspace_bytes);
  LEGOKV_PLACE(Attention, num_pool_pages);
  LEGOKV_PLACE(Attention, num_tokens);
  LEGOKV_PLACE(Attention, num_sequences);
  LEGOKV_PLACE(Attention, num_table_rows);
  LEGOKV_PLACE(Attention, num_heads);
  LEGOKV_PLACE(Attention, num_kv_heads);
  LEGOKV_PLACE(Attention, head_size);
  LEGOKV_PLACE(Attention, page_size);
  LEGOKV_PLACE(Attention, dtype);
  LEGOKV_PLACE(Attention, regime);
  LEGOKV_PLACE(Attention, num_splits);
  LEGOKV_PLACE(Attention, num_shared_tiles);
  LEGOKV_PLACE(Attention, num_shared_members);
  LEGOKV_PLACE(Attention, num_shared_pages);
  LEGOKV_PLACE(Attention, scale);
  return '{' + fields + '}';
}

std::string sharing_layout() {
  std::string fields;
  LEGOKV_PLACE(LegokvSharing, positions);
  LEGOKV_PLACE(LegokvSharing, query_start);
  LEGOKV_PLACE(LegokvSharing, pages);
  LEGOKV_PLACE(LegokvSharing, own_pages);
  LEGOKV_PLACE(LegokvSharing, shared_tiles);
  LEGOKV_PLACE(LegokvSharing, shared_members);
  LEGOKV_PLACE(LegokvSharing, shared_pages);
  LEGOKV_PLACE(LegokvSharing, shared_start);
  LEGOKV_PLACE(LegokvSharing, num_pool_pages);
  LEGOKV_PLACE(LegokvSharing, num_tokens);
  LEGOKV_PLACE(LegokvSharing, num_sequences);
  LEGOKV_PLACE(LegokvSharing, num_table_rows);
  LEGOKV_PLACE(LegokvSharing, num_heads);
  LEGOKV_PLACE(LegokvSharing, num_kv_heads);
  LEGOKV_PLACE(LegokvSharing, head_size);
  LEGOKV_PLACE(LegokvSharing, page_size);
  LEGOKV_PLACE(LegokvSharing, max_tiles);
  LEGOKV_PLACE(LegokvSharing, max_members);
  LEGOKV_PLACE(LegokvSharing, max_pages);
  LEGOKV_PLACE(LegokvSharing, num_tiles);
  LEGOKV_PLACE(LegokvSharing, num_members);
  LEGOKV_PLACE(LegokvSharing, num_pages);
  LEGOKV_PLACE(LegokvSharing, num_own_rows);
  return '{' + fields + '}';
}

std::string dtypes() {
  return '{' +
         joined(joined(member("float32", std::to_string(LEGOKV_FLOAT32)),
                       member("float16", std::to_string(LEGOKV_FLOAT16))),
                member("bfloat16", std::to_string(LEGOKV_BFLOAT16))) +
         '}';
}

std::string structs() {
  return '{' +
         joined(joined(member("LegokvKvImport", kv_import_layout()),
                       member("LegokvLegolinkAttention", attention_layout())),
                member("LegokvSharing", sharing_layout())) +
         '}';
}

std::string library_info() {
  std::string info = member("version", quoted(LEGOKV_VERSION));
  info = joined(info, member("form", quoted(LEGOKV_FORM)));
  info = joined(info, member("architectures", quoted(LEGOKV_ARCHITECTURES)));
  info = joined(info, member("head_sizes", numbers_that(is_supported_head_size)));
  info = joined(info, member("page_sizes", numbers_that(is_supported_page_size)));
  info = joined(info, member("dtypes", dtypes()));
  info = joined(info, member("ops", ops()));
  return '{' + joined(info, member("structs", structs())) + '}';
}

}  // namespace
}  // namespace legokv

LEGOKV_EXPORT const char* legokv_last_error(void) { return legokv::last_error(); }

LEGOKV_EXPORT const char* legokv_library_info(void) {
  static const std::string info = legokv::library_info();
  return info.c_str();
}
