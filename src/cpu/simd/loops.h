// All inner loops, for the file that includes this: one per instruction set, with its own compiler
// flags. Hence the unnamed namespaces of the headers below: the sets must not share a function.
#pragma once

#include "src/cpu/simd/elementwise.h"
#include "src/cpu/simd/gemm.h"
#include "src/cpu/simd/table.h"
#include "src/cpu/simd/tokens.h"

namespace dropless::cpu {
namespace {

constexpr SimdTable table_of_this_file(const char* name) {
  return {
      .name = name,
      .gemm_shape = gemm_shape,
      .gemm_block = gemm_block,
      .gemm_pack_a = gemm_pack_a,
      .gemm_pack_b = gemm_pack_b,
      .gemm_tiles = gemm_tiles,
      .gemm_round = gemm_round,
      .route_forward = route_forward_tokens,
      .route_backward = route_backward_tokens,
      .combine = combine_tokens,
      .combine_backward = combine_backward_tokens,
      .expert_backward = expert_backward_tokens,
      .activation_forward = activation_forward_range,
      .activation_backward = activation_backward_range,
  };
}

}  // namespace
}  // namespace dropless::cpu
