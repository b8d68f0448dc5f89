// The inner loops compiled for avx512. See table.h.
#include "src/cpu/simd/loops.h"

namespace dropless::cpu {

extern const SimdTable kAvx512Table;
constinit const SimdTable kAvx512Table = table_of_this_file("avx512");

}  // namespace dropless::cpu
