#include "cpu/instruction_sets.h"

#if defined(LEGOKV_HAS_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace legokv::cpu {
namespace {

struct InstructionSet {
  const char* name;
  const Kernels* (*kernels)(int dtype);  // null: the compiler could not build it
};

#ifdef LEGOKV_HAS_AVX2
constexpr auto* kAvx2 = avx2_kernels;
#else
constexpr const Kernels* (*kAvx2)(int) = nullptr;
#endif
#ifdef LEGOKV_HAS_AVX512
constexpr auto* kAvx512 = avx512_kernels;
#else
constexpr const Kernels* (*kAvx512)(int) = nullptr;
#endif
#ifdef LEGOKV_HAS_AVX512_BF16
constexpr auto* kAvx512Bf16 = avx512_bf16_kernels;
#else
constexpr const Kernels* (*kAvx512Bf16)(int) = nullptr;
#endif

#ifdef LEGOKV_HAS_AMX
constexpr auto* kAmx = amx_kernels;
#else
constexpr const Kernels* (*kAmx)(int) = nullptr;
#endif

// By number of LegokvInstructionSet.
constexpr InstructionSet kSets[] = {{"best", nullptr},
                                    {"software_tiles", software_tiles_kernels},
                                    {"portable", portable_kernels},
                                    {"avx2", kAvx2},
                                    {"avx512", kAvx512},
                                    {"avx512_bf16", kAvx512Bf16},
                                    {"amx", kAmx}};

#if defined(LEGOKV_HAS_AMX)
// Linux lets a process use the tiles' large registers only if it asks.
bool ask_for_amx() {
#if defined(LEGOKV_AMX_NEEDS_FP16)
  if (!__builtin_cpu_supports("avx512fp16")) return false;
#endif
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool ask_for_amx() { return false; }
#endif

bool may_use_amx() {
  static const bool may = ask_for_amx();
  return may;
}

bool processor_has(int instruction_set) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  switch (instruction_set) {
    case LEGOKV_AVX2:
      return avx2;
    case LEGOKV_AVX512:
      return avx512;
    case LEGOKV_AVX512_BF16:
      return avx512 && __builtin_cpu_supports("avx512bf16");
    case LEGOKV_AMX:
      return avx512 && __builtin_cpu_supports("avx512bf16") && may_use_amx();
    default:
      break;
  }
#endif
  return instruction_set == LEGOKV_PORTABLE || instruction_set == LEGOKV_SOFTWARE_TILES;
}

}  // namespace

bool has_instruction_set(int instruction_set) {
  return instruction_set > LEGOKV_BEST && instruction_set <= LEGOKV_AMX &&
         kSets[instruction_set].kernels != nullptr && processor_has(instruction_set);
}

const char* instruction_set_name(int instruction_set) {
  const bool known = instruction_set >= LEGOKV_BEST && instruction_set <= LEGOKV_AMX;
  return known ? kSets[instruction_set].name : "unknown";
}

Choice choose_kernels(int instruction_set, int dtype) {
  if (instruction_set != LEGOKV_BEST) {
    const bool has = has_instruction_set(instruction_set);
    return {has ? kSets[instruction_set].kernels(dtype) : nullptr, instruction_set};
  }
  for (int set = LEGOKV_AMX; set > LEGOKV_PORTABLE; --set) {
    if (!has_instruction_set(set)) continue;
    if (const Kernels* kernels = kSets[set].kernels(dtype)) return {kernels, set};
  }
  return {portable_kernels(dtype), LEGOKV_PORTABLE};
}

}  // namespace legokv::cpu
