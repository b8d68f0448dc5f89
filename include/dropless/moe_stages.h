// The dropless layer in stages, each usable alone: for programs that put something of their own
// between them (another router, an exchange of rows between machines, another activation).
//
//   forward                                         backward, from the last to the first
//   1  moe_logits          logits = x Wr^T          moe_logits_backward   d_logits -> d_x, d_Wr
//   2  route_forward       weights, indices         route_backward        d_weights -> d_logits
//   3  dispatch_order      rows, offsets, tokens
//   4  moe_up              gate, up                 moe_up_backward       d_gate, d_up -> d_x, d_W1,
//                                                                         d_V1
//   5  activation_forward  h = act(gate) up         activation_backward   d_h -> d_gate, d_up
//   6  moe_down            y = h W2                 moe_down_backward     d_y -> d_h, d_W2
//   7  combine             out                      combine_backward      d_out -> d_y, d_weights
//
// Stages 2 (route.h), 3 and 7 (permute.h) and 5 (activation.h) are ops of their own; the others are
// here. In this order they give moe_forward's bits (moe.h). The gradient of x has two parts: d_x_TD
// of the router, and gather_backward (permute.h) of the experts' d_x_RD.
//
// Experts on several machines: each calls stages 4 to 6 with the experts it owns (num_experts of its
// MoEConfig, and their weights) on the rows that reached it, sorted by expert. A shared expert is
// stages 4 to 6 with one expert and offsets {0, T}.
//
// Shapes as in moe.h: T tokens, R rows sorted by expert, of which offsets_E1[E] <= R are in use (the
// others are neither read nor written). MoEConfig gives num_experts, d_model, d_ffn, glu,
// expert_bias and backend; its other fields are not read. Of MoEWeights and MoEGradients only the
// tensors named are. All floating tensors have one type but logits, fp32 (fp64 for fp64 layers). On
// the CPU. Workspace: 64-byte aligned, moe_stage_workspace_bytes; with less, down to one thread's
// share, fewer threads work. Throws Error(kInvalidArgument) naming the tensor and the shapes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dropless/moe.h"
#include "dropless/view.h"

namespace dropless {

// Enough for each of the stages below on `num_rows` rows (or tokens) of type `dtype`.
std::size_t moe_stage_workspace_bytes(const MoEConfig& config, std::int64_t num_rows, DType dtype);

// logits_TE = x_TD router_ED^T
void moe_logits(const MoEConfig& config, ConstTensorView x_TD, ConstTensorView router_ED,
                TensorView logits_TE, void* workspace, std::size_t workspace_bytes);

// d_x_TD = d_logits Wr (type of the logits: it is a part of a sum), d_router_ED = d_logits^T x
void moe_logits_backward(const MoEConfig& config, ConstTensorView x_TD, ConstTensorView router_ED,
                         ConstTensorView d_logits_TE, TensorView d_x_TD, TensorView d_router_ED,
                         void* workspace, std::size_t workspace_bytes);

// gate_RF[r] = W1_e x[r] (+ b1_e), up_RF[r] = V1_e x[r] (+ bv1_e) of each row r of expert e. Row r
// reads x's row tokens_R[r], int32 as of dispatch_order, or row r where tokens_R is absent. Reads
// w1_EFD, v1_EFD, b1_EF and bv1_EF; up_RF, v1 and bv1 are absent for MLP.
void moe_up(const MoEConfig& config, ConstTensorView x, ConstTensorView tokens_R,
            ConstTensorView offsets_E1, const MoEWeights& weights, TensorView gate_RF,
            TensorView up_RF, void* workspace, std::size_t workspace_bytes);

// d_x_RD[r] = d_gate[r] W1_e + d_up[r] V1_e, for each row (gather_backward sums a token's rows); the
// gradients of w1_EFD, v1_EFD, b1_EF and bv1_EF.
void moe_up_backward(const MoEConfig& config, ConstTensorView x, ConstTensorView tokens_R,
                     ConstTensorView offsets_E1, const MoEWeights& weights,
                     ConstTensorView d_gate_RF, ConstTensorView d_up_RF, TensorView d_x_RD,
                     const MoEGradients& grads, void* workspace, std::size_t workspace_bytes);

// y_RD[r] = h_RF[r] W2_e (+ b2_e). Reads w2_EFD and b2_ED.
void moe_down(const MoEConfig& config, ConstTensorView h_RF, ConstTensorView offsets_E1,
              const MoEWeights& weights, TensorView y_RD, void* workspace,
              std::size_t workspace_bytes);

// d_h_RF[r] = d_y[r] W2_e^T; the gradients of w2_EFD and b2_ED.
void moe_down_backward(const MoEConfig& config, ConstTensorView h_RF, ConstTensorView offsets_E1,
                       const MoEWeights& weights, ConstTensorView d_y_RD, TensorView d_h_RF,
                       const MoEGradients& grads, void* workspace, std::size_t workspace_bytes);

}  // namespace dropless
