// The router: from logits to K experts and K weights per token, with the two router losses.
//
//   s[t, e] = softmax(logits[t, :])[e]   or   sigmoid(logits[t, e])       the score
//   e_1..e_K                                                              RouteSelection
//   w_k     = scaling_factor * s[t, e_k] / (sum_j s[t, e_j]^q)^(1/q)      q = normalize_p > 0
//   w_k     = scaling_factor * s[t, e_k]                                  q = 0
//
//   p[t, e]   = s[t, e] / sum_j s[t, j]                           softmax: p = s
//   losses[0] = E / (T K) * sum_e n_e * mean_t p[t, e]            load balancing; n_e tokens chose e,
//                                                                 held constant
//   losses[1] = mean_t logsumexp(logits[t, :])^2                  router z-loss
//
// Top-k selection takes the K largest c, of equal ones the lowest expert first:
//
//   c[t, e] = logits[t, e]              without bias and group limit: the order of the scores, but
//                                       free of how exp rounds, so every backend selects alike
//   c[t, e] = s[t, e] + bias[e]         otherwise; scores equal up to rounding may then go either
//                                       way between backends. The bias (0 where absent) decides
//                                       the selection only: no weight or loss contains it.
//   Group limit: the experts form num_groups groups of E / num_groups neighbours; only experts of
//   the group_top_k best groups are eligible. A group's value is the sum of its two largest c (of
//   its one c if it has one expert); of equal groups the lowest first.
//
// Rows with NaN still get K distinct valid experts (and NaN weights). Scores that sum to less than
// 1e-30 are not divided: neither the chosen ones by their q-norm nor all of a row by sum_j s[t, j].
// Weights of experts out of reach are then 0 in effect, not NaN.
//
// Sources: Shazeer et al. 2017 (arXiv:1701.06538), Fedus et al. 2021 (arXiv:2101.03961), Zoph et
// al. 2022 (arXiv:2202.08906), losses scaled as in MegaBlocks; sigmoid scores, their balance loss,
// selection bias and groups: DeepSeek-V3 (arXiv:2412.19437).
//
// Shapes: T tokens, E experts, K <= E chosen per token. Floating tensors have logits' type, fp32 or
// fp64; indices and counts are int32. All contiguous, on the CPU. Sums over tokens run in an order
// that depends on T only. Throws Error(kInvalidArgument) naming the field or tensor.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dropless/backend.h"
#include "dropless/view.h"

namespace dropless {

enum class RouteScore : std::uint8_t { kSoftmax, kSigmoid };

enum class RouteSelection : std::uint8_t {
  kTopK,
  // (t K + k) mod E whatever the logits: perfectly balanced, for measurements.
  kUniform,
  // What indices_TK already holds (replay of an earlier routing). A row may name an expert twice.
  kGiven,
};

struct RouteConfig {
  RouteScore score = RouteScore::kSoftmax;
  RouteSelection selection = RouteSelection::kTopK;
  std::int64_t num_groups = 1;   // must divide E; top-k selection only
  std::int64_t group_top_k = 1;  // groups a token may reach; num_groups: no limit
  double normalize_p = 0;        // q above; 0: off
  double scaling_factor = 1;     // > 0

  friend bool operator==(const RouteConfig&, const RouteConfig&) = default;
};

std::size_t route_workspace_bytes(std::int64_t num_tokens, std::int64_t num_experts, DType dtype);

// indices_TK is written, or read with RouteSelection::kGiven. bias_E (read by top-k selection
// only), losses_2 and tokens_per_expert_E may be absent. T = 0 gives losses of 0.
void route_forward(const RouteConfig& config, ConstTensorView logits_TE, ConstTensorView bias_E,
                   TensorView weights_TK, TensorView indices_TK, TensorView losses_2,
                   TensorView tokens_per_expert_E, void* workspace, std::size_t workspace_bytes,
                   Backend backend = Backend::kAuto);

// d_logits from the gradients of w and of the losses, for the experts in indices_TK however they
// were selected; the scores are recomputed. d_losses_2 may be absent (zero); tokens_per_expert_E
// may be absent only with it. d_logits_TE must not be logits_TE's memory.
//
//   v_k   = w_k / scaling_factor
//   d_s_k = scaling_factor * (d_w_k - v_k^(q-1) sum_j d_w_j v_j) / (sum_j s_j^q)^(1/q)     q > 0
//   d_s_k = scaling_factor * d_w_k                                                         q = 0
//   d_p   = d_losses[0] * E / (T K) * n / T
//   d_l   = d_losses[1] * 2 / T * logsumexp(z)
//   d_z   = p * (D - sum_e p_e D_e + d_l)       with D = d_p + scatter(d_s)               softmax
//   d_z   = s (1 - s) * (scatter(d_s) + (d_p - sum_e p_e d_p_e) / sum_e s_e)
//           + d_l * softmax(z)                                                            sigmoid
void route_backward(const RouteConfig& config, ConstTensorView logits_TE,
                    ConstTensorView indices_TK, ConstTensorView tokens_per_expert_E,
                    ConstTensorView d_weights_TK, ConstTensorView d_losses_2,
                    TensorView d_logits_TE, Backend backend = Backend::kAuto);

// Multiplicative noise on the router's input, for exploration in training (Fedus et al. 2021):
//
//   out_i = x_i * (1 + epsilon * (2 u_i - 1)),      u_i uniform in (0, 1)
//
// u_i is (word i mod 4 of Philox4x32-10 at counter (i / 4, stream) under key `seed`, plus 1/2)
// / 2^32 (Salmon et al. 2011): the element's position alone decides it, so the bits do not depend
// on the number of threads or the backend. Give each layer and step its own `stream`.
//
// The noise does not depend on x, so the op is its own backward: d_x = route_jitter(d_out) with the
// same epsilon, seed and stream. x: fp32, fp64, bf16 or fp16, [T, D]; out like x, may be x's
// memory. 0 <= epsilon < 1.
void route_jitter(ConstTensorView x_TD, double epsilon, std::uint64_t seed, std::uint64_t stream,
                  TensorView out_TD, Backend backend = Backend::kAuto);

}  // namespace dropless
