// The inner loops compiled for avx512 with its bf16 products. See table.h.
#include "src/cpu/simd/loops.h"

namespace dropless::cpu {

extern const SimdTable kAvx512Bf16Table;
constinit const SimdTable kAvx512Bf16Table = table_of_this_file("avx512_bf16");

}  // namespace dropless::cpu
