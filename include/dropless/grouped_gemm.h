// Grouped matrix product: rows sorted by group, one weight matrix per group.
//
//   grouped_gemm              out[r, :] = a[r, :] B_e        B_e [K, N]   (transpose_b = false)
//                             out[r, :] = a[r, :] B_e^T      B_e [N, K]   (transpose_b = true)
//   grouped_gemm_weight_grad  out_e     = sum over the rows r of e of  a[r, :]^T b[r, :]
//
// for the rows r in [offsets[e], offsets[e + 1]) of each group e. Groups may be empty and of any
// size; the weight gradient of an empty group is exactly zero. Gradients of grouped_gemm:
//   d_a = grouped_gemm(d_out, B, !transpose_b);
//   d_B = grouped_gemm_weight_grad(a, d_out), for transpose_b: grouped_gemm_weight_grad(d_out, a).
//
// Shapes: R rows, E groups, M, N, K matrix sides. All floating tensors have one dtype: fp32 and
// fp64 are summed in themselves, bf16 and fp16 in fp32 and rounded once. offsets_E1: int64 [E + 1],
// from 0 to R, not decreasing. All contiguous. The order of every sum depends on the shapes only,
// never on the number of threads. Throws Error(kInvalidArgument) naming the tensor and the shapes.
#pragma once

#include <cstddef>

#include "dropless/backend.h"
#include "dropless/view.h"

namespace dropless {

// Bytes for all OpenMP threads that a parallel region started now would use. A smaller workspace is
// accepted down to one thread's share; fewer threads then work.
std::size_t grouped_gemm_workspace_bytes();

void grouped_gemm(ConstTensorView a_RK, ConstTensorView b_EKN, bool transpose_b,
                  ConstTensorView offsets_E1, TensorView out_RN, void* workspace,
                  std::size_t workspace_bytes, Backend backend = Backend::kAuto);

void grouped_gemm_weight_grad(ConstTensorView a_RM, ConstTensorView b_RN,
                              ConstTensorView offsets_E1, TensorView out_EMN, void* workspace,
                              std::size_t workspace_bytes, Backend backend = Backend::kAuto);

}  // namespace dropless
