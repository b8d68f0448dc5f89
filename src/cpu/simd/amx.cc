// The inner loops compiled for avx512 with its bf16 products and the matrix unit's. See table.h.
#include "src/cpu/simd/loops.h"

namespace dropless::cpu {

extern const SimdTable kAmxTable;
constinit const SimdTable kAmxTable = table_of_this_file("amx");

}  // namespace dropless::cpu
