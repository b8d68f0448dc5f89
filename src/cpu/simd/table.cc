// Run-time choice of the instruction set. The contract is table.h.
#include "src/cpu/simd/table.h"

#if defined(DROPLESS_X86_SIMD) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <string_view>

#include "src/common/check.h"

namespace dropless::cpu {

extern const SimdTable kGenericTable;
#ifdef DROPLESS_X86_SIMD
extern const SimdTable kAvx2Table;
extern const SimdTable kAvx512Table;
extern const SimdTable kAvx512Bf16Table;
extern const SimdTable kAmxTable;
#endif

namespace {

// Of SimdLevel, in its order.
constexpr std::string_view kLevelNames[] = {"generic", "avx2", "avx512", "avx512_bf16", "amx"};
static_assert(std::ssize(kLevelNames) == static_cast<int>(SimdLevel::kAmx) + 1);

#ifdef DROPLESS_X86_SIMD
// Linux lets a process use the matrix unit's registers once it has asked. That cannot be taken back: from then
// on signal frames have room for them (8 KB).
bool may_use_amx() {
#ifdef __linux__
  constexpr long kRequestPermission = 0x1023,
                 kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// The widest level up to `most` that processor and operating system have.
SimdLevel available_level(SimdLevel most) {
  SimdLevel level = SimdLevel::kGeneric;
#ifdef DROPLESS_X86_SIMD
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2) level = SimdLevel::kAvx2;
  if (avx2 && avx512) level = SimdLevel::kAvx512;
  if (avx2 && avx512 && __builtin_cpu_supports("avx512bf16")) level = SimdLevel::kAvx512Bf16;
  // Asked for last, and only where it would be used.
  if (level == SimdLevel::kAvx512Bf16 && most >= SimdLevel::kAmx && may_use_amx()) {
    level = SimdLevel::kAmx;
  }
#endif
  return std::min(level, most);
}

SimdLevel requested_level() {
  const char* variable = std::getenv("DROPLESS_CPU_ISA");
  if (variable == nullptr) return SimdLevel::kAmx;
  const std::string_view name = variable;
  for (int level = 0; level < std::ssize(kLevelNames); ++level) {
    if (name == kLevelNames[level]) return static_cast<SimdLevel>(level);
  }
  check_failed(ErrorKind::kInvalidArgument, "DROPLESS_CPU_ISA", __FILE__, __LINE__,
               concat("the environment variable DROPLESS_CPU_ISA is \"", name, "\""),
               "set it to generic, avx2, avx512, avx512_bf16 or amx, or unset it");
}

SimdLevel& current_level() {
  static SimdLevel level = available_level(requested_level());
  return level;
}

}  // namespace

SimdLevel simd_level() { return current_level(); }

void set_simd_level(SimdLevel level) { current_level() = available_level(level); }

const SimdTable& simd() {
#ifdef DROPLESS_X86_SIMD
  if (current_level() == SimdLevel::kAmx) return kAmxTable;
  if (current_level() == SimdLevel::kAvx512Bf16) return kAvx512Bf16Table;
  if (current_level() == SimdLevel::kAvx512) return kAvx512Table;
  if (current_level() == SimdLevel::kAvx2) return kAvx2Table;
#endif
  return kGenericTable;
}

}  // namespace dropless::cpu
