// One whole layer with its tensors, run forward and backward; and the same layer written naively in
// double, token by token, as an independent check of the composition.
#pragma once

#include <set>
#include <string>

#include "dropless/moe.h"
#include "dropless/observe.h"
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

// What observe.h hears while run() is carried out: which parts, of how many operations together.
struct PartsTold {
  std::set<std::string> names;
  double flops = 0;
};
template <class Run>
PartsTold parts_told(Run run) {
  PartsTold told;
  const PartObserver before = observe_parts([&](const QueuedPart& part) {
    told.names.insert(part.name);
    told.flops += part.flops;
    EXPECT_GT(part.bytes, 0) << part.name;
  });
  run();
  observe_parts(before);
  return told;
}

// ---- the layer in 16 bits, as a GPU computes it, against the layer in double

inline constexpr double kTolerance = 5e-3;

// x and the router as multiples of 1/4 and 1/1024: then logits are exact in any order of summation, and experts the same
// however near they lie.
void make_logits_exact(MoECase& c);

// The error of the rows that experts have: a capacity leaves the last ones unwritten.
inline double error_of_rows(const Tensor& actual, const Tensor& expected,
                            const Tensor& offsets_E1) {
  const auto rows = static_cast<std::int64_t>(offsets_E1.get(offsets_E1.numel() - 1));
  Tensor a(actual.dtype(), {rows, actual.dim(1)}), b(expected.dtype(), {rows, actual.dim(1)});
  for (std::int64_t i = 0; i < a.numel(); ++i) {
    a.set(i, actual.get(i));
    b.set(i, expected.get(i));
  }
  return relative_error(a, b);
}

// What forward left in `c` against the layer in double, which has run forward.
inline void expect_forward_matches(const MoECase& c, const MoECase& reference) {
  EXPECT_TRUE(same_bits(c.indices_TK, reference.indices_TK));
  EXPECT_TRUE(same_bits(c.rows_TK, reference.rows_TK));
  EXPECT_TRUE(same_bits(c.offsets_E1, reference.offsets_E1));
  EXPECT_TRUE(same_bits(c.counts_E, reference.counts_E));
  EXPECT_LE(relative_error(c.out_TD, reference.out_TD), kTolerance);
  EXPECT_LE(relative_error(c.losses_2, reference.losses_2), 1e-5);
  EXPECT_LE(relative_error(c.weights_TK, reference.weights_TK), 1e-4);
  EXPECT_LE(error_of_rows(c.gate_RF, reference.gate_RF, c.offsets_E1), kTolerance);
  if (c.config.glu) {
    EXPECT_LE(error_of_rows(c.up_RF, reference.up_RF, c.offsets_E1), kTolerance);
  }
}

// The same of backward.
inline void expect_backward_matches(const MoECase& c, const MoECase& reference) {
  EXPECT_LE(relative_error(c.d_x_TD, reference.d_x_TD), kTolerance);
  EXPECT_LE(relative_error(c.d_router_ED, reference.d_router_ED), kTolerance);
  EXPECT_LE(relative_error(c.d_w1_EFD, reference.d_w1_EFD), kTolerance);
  if (c.config.glu) {
    EXPECT_LE(relative_error(c.d_v1_EFD, reference.d_v1_EFD), kTolerance);
  }
  EXPECT_LE(relative_error(c.d_w2_EFD, reference.d_w2_EFD), kTolerance);
  if (c.config.expert_bias) {
    EXPECT_LE(relative_error(c.d_b1_EF, reference.d_b1_EF), kTolerance);
    EXPECT_LE(relative_error(c.d_b2_ED, reference.d_b2_ED), kTolerance);
    if (c.config.glu) {
      EXPECT_LE(relative_error(c.d_bv1_EF, reference.d_bv1_EF), kTolerance);
    }
  }
}

}  // namespace dropless::testing
