// wgmma: D[64, N] += A[64, 16] B[N, 16]^T by one warpgroup, operands in shared memory, fp32
// accumulators in registers; and the descriptors that tell it how a tile lies in shared memory.
//
// Fragment layout (PTX ISA, "wgmma register fragments"): warp w of the warpgroup holds rows
// 16 w .. 16 w + 15; lane l, register 4 j + 2 h + i holds row 16 w + l / 4 + 8 h,
// column 8 j + 2 (l % 4) + i.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace dropless::cuda {

enum class Major { kK, kMN };  // which of an operand's two dimensions is contiguous

// Descriptor of a 16-bit tile written by TMA with the 128-byte swizzle (PTX ISA, "Shared Memory
// Matrix Layout" and CuTe's canonical layouts).
//   K-major:  rows of 64 k (128 bytes); eight rows make a 1024-byte atom, atoms follow one another.
//   MN-major: boxes of 64 k rows by 64 mn (128 bytes each, 8192 bytes a box); eight k rows make an
//             atom; boxes follow one another along mn.
template <Major kMajor>
__device__ __forceinline__ std::uint64_t wgmma_descriptor(std::uint32_t shared_address) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kAtomStride = std::uint64_t{1024 >> 4} << 32;
  constexpr std::uint64_t kBoxStride = std::uint64_t{kMajor == Major::kMN ? (8192 >> 4) : 1}
                                       << 16;  // unused by K-major tiles
  return kSwizzle128 | kAtomStride | kBoxStride |
         static_cast<std::uint64_t>((shared_address & 0x3ffff) >> 4);
}

// What to add to a descriptor to step 16 along k.
template <Major kMajor>
inline constexpr std::uint32_t kWgmmaStepK = kMajor == Major::kK ? (32 >> 4) : (2048 >> 4);

// Operand lists. An N of 64 needs 32 accumulator registers, and so on.
#define DROPLESS_D8(i)                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define DROPLESS_D32(i) DROPLESS_D8(i), DROPLESS_D8(i + 8), DROPLESS_D8(i + 16), DROPLESS_D8(i + 24)
#define DROPLESS_R32                                                                           \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
  "%25,%26,%27,%28,%29,%30,%31"
#define DROPLESS_R64                                                                              \
  DROPLESS_R32                                                                                    \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54," \
  "%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define DROPLESS_R96                                                                              \
  DROPLESS_R64                                                                                    \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86," \
  "%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define DROPLESS_R128                                                                            \
  DROPLESS_R96                                                                                   \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114," \
  "%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define DROPLESS_WGMMA(n, types, registers, a, b, keep, trans_a, trans_b)              \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " keep                                             \
  ", 0;\n"                                                                             \
  "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." types " {" registers "}, " a ", " b \
  ", p, 1, 1, " trans_a ", " trans_b ";\n}\n"
#define DROPLESS_WGMMA_OF(types)                                                                \
  if constexpr (kN == 64) {                                                                     \
    asm volatile(DROPLESS_WGMMA("64", types, DROPLESS_R32, "%32", "%33", "%34", "%35", "%36")   \
                 : DROPLESS_D32(0)                                                              \
                 : "l"(a), "l"(b), "r"(keep), "n"(kTransA), "n"(kTransB));                      \
  } else if constexpr (kN == 128) {                                                             \
    asm volatile(DROPLESS_WGMMA("128", types, DROPLESS_R64, "%64", "%65", "%66", "%67", "%68")  \
                 : DROPLESS_D32(0), DROPLESS_D32(32)                                            \
                 : "l"(a), "l"(b), "r"(keep), "n"(kTransA), "n"(kTransB));                      \
  } else if constexpr (kN == 192) {                                                             \
    asm volatile(DROPLESS_WGMMA("192", types, DROPLESS_R96, "%96", "%97", "%98", "%99", "%100") \
                 : DROPLESS_D32(0), DROPLESS_D32(32), DROPLESS_D32(64)                          \
                 : "l"(a), "l"(b), "r"(keep), "n"(kTransA), "n"(kTransB));                      \
  } else {                                                                                      \
    static_assert(kN == 256, "wgmma knows N = 64, 128, 192, 256");                              \
    asm volatile(                                                                               \
        DROPLESS_WGMMA("256", types, DROPLESS_R128, "%128", "%129", "%130", "%131", "%132")     \
        : DROPLESS_D32(0), DROPLESS_D32(32), DROPLESS_D32(64), DROPLESS_D32(96)                 \
        : "l"(a), "l"(b), "r"(keep), "n"(kTransA), "n"(kTransB));                               \
  }

// d (+)= A B^T over 16 of k, of __nv_bfloat16 or __half. keep = 0 ignores d's old value.
template <class Element, int kN, Major kMajorA, Major kMajorB>
__device__ __forceinline__ void wgmma(float (&d)[kN / 2], std::uint64_t a, std::uint64_t b,
                                      int keep) {
  constexpr int kTransA = kMajorA == Major::kMN;
  constexpr int kTransB = kMajorB == Major::kMN;
  if constexpr (std::is_same_v<Element, __half>) {
    DROPLESS_WGMMA_OF("f16.f16")
  } else {
    DROPLESS_WGMMA_OF("bf16.bf16")
  }
}

#undef DROPLESS_WGMMA_OF
#undef DROPLESS_WGMMA
#undef DROPLESS_R128
#undef DROPLESS_R96
#undef DROPLESS_R64
#undef DROPLESS_R32
#undef DROPLESS_D32
#undef DROPLESS_D8

}  // namespace dropless::cuda
