// The inner loops compiled for any processor of the target. See table.h.
#include "src/cpu/simd/loops.h"

namespace dropless::cpu {

extern const SimdTable kGenericTable;
constinit const SimdTable kGenericTable = table_of_this_file("generic");

}  // namespace dropless::cpu
