// Dispatch order: which routed row each (token, k) becomes, and moving token rows there and back.
//
// Routed rows are sorted by expert, in token order (then k) within an expert: a stable counting
// sort of the T x K expert indices. Expert e owns rows [offsets[e], offsets[e + 1]); empty experts
// own none, no padding. With a capacity C (Lepikhin et al. 2020, arXiv:2006.16668) an expert keeps
// its first min(C, n_e) rows in that order; the later ones are dropped: their entry of rows is -1.
//
//   gather    x_RD[rows[t, k]] = x_TD[t]
//   combine   out_TD[t] = sum_k weights[t, k] * y_RD[rows[t, k]]    in the order of k, fp32 sums
//
// A (t, k) whose entry of rows is -1 is passed over: combine adds nothing for it and its weight's
// gradient is 0. Rows of x_RD or d_y_RD that no (t, k) names are zero. So the same four functions
// serve the padded and the binned layout, with slots in the place of rows:
//
//   padded   experts begin at multiples of a block: slots of padded_slots, S = padded[E] of them
//   binned   capacity MoE: expert e has the slots [e C, (e + 1) C), S = E C: slots of binned_slots
//
// With these, gather is MegaBlocks' padded_gather or binned_gather, combine its padded_scatter or
// binned_scatter.
//
// Shapes: T tokens, K experts per token, R = T K rows < 2^31 (R = S slots of a padded or
// binned layout), D columns. x, y and their gradients:
// one of fp32, fp64, bf16, fp16. weights: fp32 (fp64 for fp64 tensors). indices, rows, tokens:
// int32; offsets: int64. All contiguous. Entries of rows other than -1 must be distinct (not
// checked) and lie in [0, R). Throws Error(kInvalidArgument) naming the tensor and the shapes.
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
                    Backend backend = Backend::kAuto, std::int64_t capacity = -1);

// Rows per expert of a capacity MoE: the whole part of factor * K T / E; a negative answer means no
// limit, as for factor 0 (MegaBlocks: the longest expert decides).
std::int64_t expert_capacity(double factor, std::int64_t num_tokens, std::int64_t top_k,
                             std::int64_t num_experts);

// slots[t, k] = padded[e] + rows[t, k] - offsets[e] with e = indices[t, k]; -1 where rows is.
// padded_E1: as of padded_offsets (index.h), or any offsets; where expert e has fewer slots than
// rows the last rows are dropped.
void padded_slots(ConstTensorView indices_TK, ConstTensorView rows_TK, ConstTensorView offsets_E1,
                  ConstTensorView padded_E1, TensorView slots_TK, Backend backend = Backend::kAuto);

// slots[t, k] = e C + rows[t, k] - offsets[e], or -1 where that place is not below C.
void binned_slots(ConstTensorView indices_TK, ConstTensorView rows_TK, ConstTensorView offsets_E1,
                  std::int64_t capacity, TensorView slots_TK, Backend backend = Backend::kAuto);

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
