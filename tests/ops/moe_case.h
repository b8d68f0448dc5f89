// One whole layer with its tensors, run forward and backward; and the same layer written naively in
// double, token by token, as an independent check of the composition.
#pragma once

#include "dropless/moe.h"
#include "tests/ops/tensor.h"

namespace dropless::testing {

inline MoEConfig config_of(std::int64_t experts, std::int64_t top_k, std::int64_t d_model,
                           std::int64_t d_ffn, Activation activation = Activation::kSilu,
                           bool glu = true, double normalize_p = 0) {
  return {.num_experts = experts,
          .top_k = top_k,
          .d_model = d_model,
          .d_ffn = d_ffn,
          .activation = activation,
          .glu = glu,
          .route = {.normalize_p = normalize_p}};
}

struct MoECase {
  MoECase(const MoEConfig& config, std::int64_t tokens, DType dtype, std::uint64_t seed);

  MoEConfig config;
  std::int64_t tokens;
  DType dtype;
  Tensor x_TD, router_ED, w1_EFD, v1_EFD, w2_EFD, bias_E;                 // inputs
  Tensor b1_EF, bv1_EF, b2_ED, shared_w1_SD, shared_v1_SD, shared_w2_SD;  // optional inputs
  Tensor shared_b1_S, shared_bv1_S, shared_b2_D;
  Tensor out_TD, losses_2, counts_E;                                   // forward
  Tensor gate_RF, up_RF, weights_TK, indices_TK, rows_TK, offsets_E1;  // saved
  Tensor shared_gate_TS, shared_up_TS;
  Tensor d_out_TD, d_losses_2;                               // backward's inputs
  Tensor d_x_TD, d_router_ED, d_w1_EFD, d_v1_EFD, d_w2_EFD;  // gradients
  Tensor d_b1_EF, d_bv1_EF, d_b2_ED, d_shared_w1_SD, d_shared_v1_SD, d_shared_w2_SD;
  Tensor d_shared_b1_S, d_shared_bv1_S, d_shared_b2_D;

  // Copies the inputs, rounded to `dtype`, into a fresh case of that type.
  MoECase to(DType dtype) const;

  MoEWeights weights() const {
    return {.router_ED = router_ED,
            .w1_EFD = w1_EFD,
            .v1_EFD = v1_EFD,
            .w2_EFD = w2_EFD,
            .selection_bias_E = bias_E,
            .b1_EF = b1_EF,
            .bv1_EF = bv1_EF,
            .b2_ED = b2_ED,
            .shared_w1_SD = shared_w1_SD,
            .shared_v1_SD = shared_v1_SD,
            .shared_w2_SD = shared_w2_SD,
            .shared_b1_S = shared_b1_S,
            .shared_bv1_S = shared_bv1_S,
            .shared_b2_D = shared_b2_D};
  }
  MoESaved saved();
  MoEGradients gradients();
  // With their own workspaces; the result is whether the canaries around it survived.
  bool forward();
  bool backward();

  // sum(out * d_out) + sum(losses * d_losses): the scalar whose gradients backward computes.
  double objective() const;
};

// out and losses (double) of the layer for the case's inputs; routing computed here too, but for
// given indices.
struct NaiveResult {
  Tensor out_TD, losses_2, counts_E;
};
NaiveResult naive_forward(const MoECase& c);

}  // namespace dropless::testing
