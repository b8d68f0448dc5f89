// The whole dropless mixture-of-experts layer. In stages, for programs that put something of their
// own between them: moe_stages.h.
//
// For each token x (a row of x_TD), with router weights Wr and K selected experts e_1..e_K:
//
//   logits   = Wr x                                   (fp32)
//   e_k, s_k                                          the router's experts and weights, route.h; by
//                                                     default the K largest logits, of equal ones
//                                                     the lowest e, and their softmax over all E
//   h_k      = act(W1_e x) * (V1_e x)   (GLU)   or   act(W1_e x)   (MLP),   with e = e_k
//   out      = sum_k s_k * (h_k W2_{e_k})             in the order k = 1..K, accumulated in fp32
//
// With expert_bias: W1_e x + b1_e, V1_e x + bv1_e, and s_k * (h_k W2_{e_k} + b2_{e_k}). With a shared
// expert of width S (shared_d_ffn > 0), h_S its activation as above and y_S = h_S W2_S (+ b2_S with
// shared_bias, which gives it biases as expert_bias does the others):
//
//   out      = y_S + sum_k ...                        or, with shared_weighted,
//   out      = y_S / (K + 1) + K / (K + 1) * sum_k ...
//
// Every token reaches all of its experts: nothing is dropped unless a capacity_factor > 0 asks for it
// (GShard, Lepikhin et al. 2020): an expert then keeps its first expert_capacity rows (permute.h),
// the others' terms of the sum are left out and no weight is normalised again. (MegaBlocks,
// Gale et al. 2022, arXiv:2211.15841; the layer's semantics are that package's `dMoE`.)
//
// Shape legend: T tokens, D model width, F expert width, E experts, K experts per token, R = T*K
// rows.
//
// On a GPU (compute capability 8.0 or later) the tensors are bf16 or fp16, the widths multiples of 8, without
// shared expert; a call only queues work on the given stream: it never waits and can be captured into
// a CUDA graph. Given indices are not checked there: one outside [0, E) is a dropped row.
//
// Memory: the caller owns everything. Between forward and backward only x, the pre-activations and
// 12 bytes per routed row are needed (`MoESaved`); softmax, activations and expert outputs are
// recomputed. Nothing is allocated inside: both directions take a workspace whose size is queried
// first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "dropless/activation.h"
#include "dropless/backend.h"
#include "dropless/route.h"
#include "dropless/view.h"

namespace dropless {

struct MoEConfig {
  std::int64_t num_experts = 8;
  std::int64_t top_k = 2;
  std::int64_t d_model = 0;
  std::int64_t d_ffn = 0;  // of one expert
  Activation activation = Activation::kSilu;
  bool glu = true;  // act(x W1^T) * (x V1^T); false: act(x W1^T)
  RouteConfig route = {};
  bool selection_bias = false;    // top-k adds MoEWeights::selection_bias_E to the scores
  bool expert_bias = false;       // MoEWeights::b1_EF, bv1_EF, b2_ED
  double capacity_factor = 0;     // 0: dropless
  std::int64_t shared_d_ffn = 0;  // width of the shared expert; 0: none
  bool shared_weighted = false;
  bool shared_bias = false;  // MoEWeights::shared_b1_S, shared_bv1_S, shared_b2_D
  Backend backend = Backend::kAuto;
};

// All weights and x have one dtype (fp32 or fp64; bf16 and fp16 with fp32 accumulation).
//
// Gate and up may be the two halves of one [E, 2 F, D] tensor, and their gradients too: of w1_EFD and v1_EFD stride[0],
// from one expert's matrix to the next, may be more than F D.
struct MoEWeights {
  ConstTensorView router_ED;
  ConstTensorView w1_EFD;  // gate (GLU) or up (MLP)
  ConstTensorView v1_EFD;  // up (GLU); absent for MLP
  ConstTensorView w2_EFD;  // down; note the layout: out = h W2, not h W2^T
  // fp32 (fp64 for fp64 layers), with MoEConfig::selection_bias, else absent; has no gradient.
  ConstTensorView selection_bias_E = {};
  // With MoEConfig::expert_bias, else absent; bv1 for GLU.
  ConstTensorView b1_EF = {}, bv1_EF = {}, b2_ED = {};
  // With MoEConfig::shared_d_ffn, else absent; v1 for GLU. Laid out as an expert's.
  ConstTensorView shared_w1_SD = {}, shared_v1_SD = {}, shared_w2_SD = {};
  ConstTensorView shared_b1_S = {}, shared_bv1_S = {}, shared_b2_D = {};  // with shared_bias
};

// What backward needs besides x and the weights. Routed rows are sorted by expert, in token order
// within an expert. On a GPU backward replaces gate_RF and up_RF by their gradients, so that it can
// run once.
struct MoESaved {
  TensorView gate_RF;     // pre-activation x W1^T, x's dtype
  TensorView up_RF;       // x V1^T, x's dtype; absent for MLP
  TensorView weights_TK;  // fp32 (fp64 for fp64 layers): s_k after normalisation
  TensorView indices_TK;  // int32: e_k; forward reads it with RouteSelection::kGiven
  TensorView rows_TK;     // int32: the routed row of each (token, k), -1 if dropped
  TensorView offsets_E1;  // int64 [E + 1]: rows of expert e are [offsets[e], offsets[e + 1])
  // The shared expert's pre-activations, x's dtype; up for GLU.
  TensorView shared_gate_TS = {}, shared_up_TS = {};
};

// Gradients; each is overwritten. Rows of experts that received no token are exactly zero.
//
// Those of w1, v1 and w2 have x's dtype, or fp32 where that has 16 bits: to an fp32 one the call's sums are added, without being
// rounded, so that it collects several calls'.
struct MoEGradients {
  TensorView x_TD;
  TensorView router_ED;
  TensorView w1_EFD;
  TensorView v1_EFD;  // absent for MLP
  TensorView w2_EFD;
  TensorView b1_EF = {}, bv1_EF = {}, b2_ED = {};
  TensorView shared_w1_SD = {}, shared_v1_SD = {}, shared_w2_SD = {};
  TensorView shared_b1_S = {}, shared_bv1_S = {}, shared_b2_D = {};
};

// Why no kernel runs this layer on tensors of `dtype` on `device`; empty where one does.
std::string moe_unsupported(const MoEConfig& config, DType dtype, Device device);

// Bytes of workspace for `num_tokens` tokens of type `dtype`. On the CPU this counts the OpenMP
// threads a parallel region would use now; with less (down to one thread's share) fewer threads
// multiply matrices.
std::size_t moe_forward_workspace_bytes(const MoEConfig& config, std::int64_t num_tokens,
                                        DType dtype, Device device = {});
std::size_t moe_backward_workspace_bytes(const MoEConfig& config, std::int64_t num_tokens,
                                         DType dtype, Device device = {});

// out_TD: x's dtype. losses_2: fp32 (fp64 for fp64 layers) [2], may be absent:
//   losses[0] = E / (T K) * sum_e n_e * mean_t p[t, e]    load-balancing loss, p as in route.h; 1 at
//                                                         perfect balance
//   losses[1] = mean_t logsumexp(logits_t)^2              router z-loss
// Both unweighted; 0 for T = 0. tokens_per_expert_E: int32 [E], may be absent.
// `workspace` is 64-byte aligned memory of x's device. Throws Error(kInvalidArgument) naming the
// tensor and the shapes, Error(kUnsupported) with what moe_unsupported says.
void moe_forward(const MoEConfig& config, ConstTensorView x_TD, const MoEWeights& weights,
                 TensorView out_TD, TensorView losses_2, TensorView tokens_per_expert_E,
                 const MoESaved& saved, void* workspace, std::size_t workspace_bytes,
                 Stream stream = nullptr);

// d_out_TD: x's dtype. d_losses_2: gradients of the two losses (same type as losses_2), may be
// absent.
void moe_backward(const MoEConfig& config, ConstTensorView x_TD, const MoEWeights& weights,
                  const MoESaved& saved, ConstTensorView d_out_TD, ConstTensorView d_losses_2,
                  const MoEGradients& grads, void* workspace, std::size_t workspace_bytes,
                  Stream stream = nullptr);

}  // namespace dropless
