// The inner loops compiled for avx2. See table.h.
#include "src/cpu/simd/loops.h"

namespace dropless::cpu {

extern const SimdTable kAvx2Table;
constinit const SimdTable kAvx2Table = table_of_this_file("avx2");

}  // namespace dropless::cpu
