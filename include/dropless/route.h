// The router: from logits to K experts and K weights per token, with the two router losses.
//
//   p[t, :]  = softmax(logits[t, :])                    over all E experts
//   e_1..e_K = the K largest logits of the row          equal logits: lowest expert index first
//   s_k      = p[t, e_k]
//   w_k      = s_k / (sum_j s_j^q)^(1/q)                normalize_p = q > 0;  q = 0: w_k = s_k
//
//   losses[0] = E / (T K) * sum_e n_e * mean_t p[t, e]  load balancing; n_e tokens chose e, held
//   constant losses[1] = mean_t logsumexp(logits[t, :])^2        router z-loss
//
// Choosing by logits rather than by p gives the same order without depending on how exp rounds, so
// that every backend selects the same experts. Rows with NaN still get K distinct valid experts
// (and NaN weights). Weights, losses: Shazeer et al. 2017 (arXiv:1701.06538), Fedus et al. 2021
// (arXiv:2101.03961), Zoph et al. 2022 (arXiv:2202.08906); scaling as in MegaBlocks.
//
// Shapes: T tokens, E experts, K <= E chosen per token. Floating tensors have logits' type, fp32 or
// fp64; indices and counts are int32. All contiguous. Sums over tokens run in an order that depends
// on T only. Throws Error(kInvalidArgument) naming the tensor and the shapes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dropless/backend.h"
#include "dropless/view.h"

namespace dropless {

std::size_t route_workspace_bytes(std::int64_t num_tokens, std::int64_t num_experts, DType dtype);

// losses_2 and tokens_per_expert_E may be absent. T = 0 gives losses of 0.
void route_forward(ConstTensorView logits_TE, double normalize_p, TensorView weights_TK,
                   TensorView indices_TK, TensorView losses_2, TensorView tokens_per_expert_E,
                   void* workspace, std::size_t workspace_bytes, Backend backend = Backend::kAuto);

// d_logits from the gradients of w and of the losses; softmax is recomputed. d_logits_TE may be
// logits_TE's memory. d_losses_2 may be absent (zero); tokens_per_expert_E may be absent only with
// it.
//
//   d_s_k = (d_w_k - w_k^(q-1) sum_j d_w_j w_j) / (sum_j s_j^q)^(1/q)
//   d_p   = scatter(d_s) + d_losses[0] * E / (T K) * n / T
//   d_z   = p * (d_p - sum_e p_e d_p_e) + d_losses[1] * 2 / T * logsumexp(z) * p
void route_backward(ConstTensorView logits_TE, double normalize_p, ConstTensorView indices_TK,
                    ConstTensorView tokens_per_expert_E, ConstTensorView d_weights_TK,
                    ConstTensorView d_losses_2, TensorView d_logits_TE,
                    Backend backend = Backend::kAuto);

}  // namespace dropless
