// Dispatch order: which routed row each (token, k) becomes, and moving token rows there and back.
//
// Routed rows are sorted by expert, in token order (then k) within an expert: a stable counting
// sort of the T x K expert indices. Expert e owns rows [offsets[e], offsets[e + 1]); empty experts
// own none, no padding.
//
//   gather    x_RD[rows[t, k]] = x_TD[t]
//   combine   out_TD[t] = sum_k weights[t, k] * y_RD[rows[t, k]]    in the order of k, fp32 sums
//
// Shapes: T tokens, K experts per token, R = T K rows < 2^31, D columns. x, y and their gradients:
// one of fp32, fp64, bf16, fp16. weights: fp32 (fp64 for fp64 tensors). indices, rows, tokens:
// int32; offsets: int64. All contiguous. `rows_TK` must be what dispatch_order wrote: a permutation
// of 0..R-1 (not checked). Throws Error(kInvalidArgument) naming the tensor and the shapes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dropless/backend.h"
#include "dropless/view.h"

namespace dropless {

std::size_t dispatch_order_workspace_bytes(std::int64_t num_tokens, std::int64_t num_experts);

// E is taken from offsets_E1 [E + 1]. tokens_R (may be absent) is the inverse: the token of each
// row. An index outside [0, E) is an error.
void dispatch_order(ConstTensorView indices_TK, TensorView rows_TK, TensorView offsets_E1,
                    TensorView tokens_R, void* workspace, std::size_t workspace_bytes,
                    Backend backend = Backend::kAuto);

void gather(ConstTensorView x_TD, ConstTensorView rows_TK, TensorView x_RD,
            Backend backend = Backend::kAuto);

// d_x_TD[t] = sum_k d_x_RD[rows[t, k]], k in order.
void gather_backward(ConstTensorView d_x_RD, ConstTensorView rows_TK, TensorView d_x_TD,
                     Backend backend = Backend::kAuto);

void combine(ConstTensorView y_RD, ConstTensorView weights_TK, ConstTensorView rows_TK,
             TensorView out_TD, Backend backend = Backend::kAuto);

//   d_y[rows[t, k]]  = weights[t, k] * d_out[t]
//   d_weights[t, k]  = <y[rows[t, k]], d_out[t]>
void combine_backward(ConstTensorView y_RD, ConstTensorView weights_TK, ConstTensorView rows_TK,
                      ConstTensorView d_out_TD, TensorView d_y_RD, TensorView d_weights_TK,
                      Backend backend = Backend::kAuto);

}  // namespace dropless
