// The inner loops, compiled for any processor of the target. See table.h.
#include "src/cpu/simd/elementwise.h"
#include "src/cpu/simd/gemm.h"
#include "src/cpu/simd/table.h"
#include "src/cpu/simd/tokens.h"

namespace dropless::cpu {

extern const SimdTable kGenericTable;
const SimdTable kGenericTable{
    .name = "generic",
    .gemm_shape = gemm_shape,
    .gemm_block = gemm_block,
    .route_forward = route_forward_tokens,
    .route_backward = route_backward_tokens,
    .combine = combine_tokens,
    .combine_backward = combine_backward_tokens,
    .expert_backward = expert_backward_tokens,
    .activation_forward = activation_forward_range,
    .activation_backward = activation_backward_range,
};

}  // namespace dropless::cpu
