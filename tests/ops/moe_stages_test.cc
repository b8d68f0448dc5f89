// The layer's stages: one after the other they give the whole layer, forward and backward; on a part
// of the experts and rows they give that part; bad arguments are named.
#include "dropless/moe_stages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dropless/permute.h"
#include "tests/ops/levels.h"
#include "tests/ops/moe_case.h"

namespace dropless::testing {
namespace {

using ::testing::HasSubstr;

// A layer run by its stages, and the tensors between them.
struct Stages {
  explicit Stages(const MoECase& input)
      : c(input),
        sums(accumulator_dtype(c.dtype)),
        rows(c.tokens * c.config.top_k),
        logits_TE(sums, {c.tokens, c.config.num_experts}),
        tokens_R(DType::kInt32, {rows}),
        h_RF(c.dtype, {rows, c.config.d_ffn}),
        y_RD(c.dtype, {rows, c.config.d_model}),
        workspace(std::max({moe_stage_workspace_bytes(c.config, rows, c.dtype),
                            route_workspace_bytes(c.tokens, c.config.num_experts, sums),
                            dispatch_order_workspace_bytes(c.tokens, c.config.num_experts)})) {}

  void forward() {
    const MoEConfig& config = c.config;
    void* space = workspace.data();
    const std::size_t bytes = workspace.bytes();
    moe_logits(config, c.x_TD, c.router_ED, logits_TE, space, bytes);
    route_forward(config.route, logits_TE, c.bias_E, c.weights_TK, c.indices_TK, c.losses_2,
                  c.counts_E, space, bytes, config.backend);
    dispatch_order(
        c.indices_TK, c.rows_TK, c.offsets_E1, tokens_R, space, bytes, config.backend,
        expert_capacity(config.capacity_factor, c.tokens, config.top_k, config.num_experts));
    for (std::int64_t i = 0; i < h_RF.numel(); ++i) {  // dropped rows are nobody's
      c.gate_RF.set(i, 0);
      if (config.glu) c.up_RF.set(i, 0);
    }
    moe_up(config, c.x_TD, tokens_R, c.offsets_E1, c.weights(), c.gate_RF, c.up_RF, space, bytes);
    activation_forward(config.activation, c.gate_RF, c.up_RF, h_RF, config.backend);
    moe_down(config, h_RF, c.offsets_E1, c.weights(), y_RD, space, bytes);
    combine(y_RD, c.weights_TK, c.rows_TK, c.out_TD, config.backend);
  }

  void backward() {
    const MoEConfig& config = c.config;
    const std::int64_t T = c.tokens, D = config.d_model, F = config.d_ffn, K = config.top_k;
    void* space = workspace.data();
    const std::size_t bytes = workspace.bytes();
    Tensor d_y_RD(c.dtype, {rows, D}), d_weights_TK(sums, {T, K}), d_h_RF(c.dtype, {rows, F});
    combine_backward(y_RD, c.weights_TK, c.rows_TK, c.d_out_TD, d_y_RD, d_weights_TK,
                     config.backend);
    moe_down_backward(config, h_RF, c.offsets_E1, c.weights(), d_y_RD, d_h_RF, c.gradients(), space,
                      bytes);
    for (std::int64_t i = 0; i < d_h_RF.numel(); ++i) {
      if (std::isnan(d_h_RF.get(i))) d_h_RF.set(i, 0);
    }
    Tensor d_gate_RF(c.dtype, {rows, F}), d_up_RF, d_x_RD(c.dtype, {rows, D});
    if (config.glu) d_up_RF = Tensor(c.dtype, {rows, F});
    activation_backward(config.activation, c.gate_RF, c.up_RF, d_h_RF, d_gate_RF, d_up_RF,
                        config.backend);
    moe_up_backward(config, c.x_TD, tokens_R, c.offsets_E1, c.weights(), d_gate_RF, d_up_RF, d_x_RD,
                    c.gradients(), space, bytes);
    Tensor experts_d_x(c.dtype, {T, D}), router_d_x(sums, {T, D});
    gather_backward(d_x_RD, c.rows_TK, experts_d_x, config.backend);
    Tensor d_logits_TE(sums, {T, config.num_experts});
    route_backward(config.route, logits_TE, c.indices_TK, c.counts_E, d_weights_TK, c.d_losses_2,
                   d_logits_TE, config.backend);
    moe_logits_backward(config, c.x_TD, c.router_ED, d_logits_TE, router_d_x, c.d_router_ED, space,
                        bytes);
    for (std::int64_t i = 0; i < T * D; ++i) {
      c.d_x_TD.set(i, experts_d_x.get(i) + router_d_x.get(i));
    }
  }

  MoECase c;
  DType sums;
  std::int64_t rows;
  Tensor logits_TE, tokens_R, h_RF, y_RD;
  Workspace workspace;
};

std::vector<MoECase> cases(DType dtype) {
  MoEConfig biased = config_of(5, 2, 24, 18, Activation::kGelu, true, 1);
  biased.expert_bias = true;
  MoEConfig capped = config_of(4, 2, 20, 12, Activation::kGeluTanh, false);
  capped.capacity_factor = 0.6;
  capped.expert_bias = true;
  return {MoECase(config_of(8, 2, 48, 70), 90, dtype, 1), MoECase(biased, 33, dtype, 2),
          MoECase(capped, 41, dtype, 3), MoECase(biased, 0, dtype, 4)};
}

TEST(MoEStages, ForwardGivesTheBitsOfTheWholeLayer) {
  for (DType dtype : {DType::kFloat64, DType::kFloat32, DType::kBFloat16}) {
    for (const MoECase& input : cases(dtype)) {
      for_each_implementation([&](Backend backend) {
        MoECase whole = input;
        whole.config.backend = backend;
        whole.forward();
        Stages stages(whole);
        stages.c.out_TD = Tensor(dtype, {input.tokens, input.config.d_model});
        stages.forward();
        EXPECT_TRUE(stages.workspace.intact());
        EXPECT_TRUE(same_bits(stages.c.out_TD, whole.out_TD));
        EXPECT_TRUE(same_bits(stages.c.losses_2, whole.losses_2));
        EXPECT_TRUE(same_bits(stages.c.rows_TK, whole.rows_TK));
      });
    }
  }
}

TEST(MoEStages, BackwardEqualsTheWholeLayer) {
  for (const MoECase& input : cases(DType::kFloat64)) {
    for_each_implementation([&](Backend backend) {
      MoECase whole = input;
      whole.config.backend = backend;
      whole.forward();
      whole.backward();
      Stages stages(whole);
      stages.c.d_x_TD = Tensor(DType::kFloat64, {input.tokens, input.config.d_model});
      stages.forward();
      stages.backward();
      EXPECT_TRUE(stages.workspace.intact());
      const double tolerance = 1e-12;
      EXPECT_LT(relative_error(stages.c.d_x_TD, whole.d_x_TD), tolerance);
      EXPECT_LT(relative_error(stages.c.d_router_ED, whole.d_router_ED), tolerance);
      EXPECT_LT(relative_error(stages.c.d_w1_EFD, whole.d_w1_EFD), tolerance);
      EXPECT_LT(relative_error(stages.c.d_v1_EFD, whole.d_v1_EFD), tolerance);
      EXPECT_LT(relative_error(stages.c.d_w2_EFD, whole.d_w2_EFD), tolerance);
      EXPECT_LT(relative_error(stages.c.d_b1_EF, whole.d_b1_EF), tolerance);
      EXPECT_LT(relative_error(stages.c.d_bv1_EF, whole.d_bv1_EF), tolerance);
      EXPECT_LT(relative_error(stages.c.d_b2_ED, whole.d_b2_ED), tolerance);
    });
  }
}

// Experts 0..2 on one machine, 3..7 on another: the rows they own, without x.
TEST(MoEStages, APartOfTheExpertsGivesItsRows) {
  MoECase c(config_of(8, 2, 32, 48), 60, DType::kFloat32, 5);
  Stages whole(c);
  whole.forward();
  const std::int64_t D = 32, F = 48, first = 3, count = 5;
  const auto begin = static_cast<std::int64_t>(whole.c.offsets_E1.get(first));
  const std::int64_t rows = whole.rows - begin;
  MoEConfig config = c.config;
  config.num_experts = count;
  Tensor offsets(DType::kInt64, {count + 1});
  for (std::int64_t e = 0; e <= count; ++e) {
    offsets.set(e, whole.c.offsets_E1.get(first + e) - static_cast<double>(begin));
  }
  Tensor x_RD(DType::kFloat32, {rows, D}), gate(DType::kFloat32, {rows, F}),
      up(DType::kFloat32, {rows, F}), h(DType::kFloat32, {rows, F}), y(DType::kFloat32, {rows, D});
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto token = static_cast<std::int64_t>(whole.tokens_R.get(begin + r));
    for (std::int64_t d = 0; d < D; ++d) x_RD.set(r * D + d, c.x_TD.get(token * D + d));
  }
  const auto owned = [&](const Tensor& w) {
    ConstTensorView view = w;
    return ConstTensorView(static_cast<const float*>(view.data) + first * F * D, DType::kFloat32,
                           {count, F, D});
  };
  const MoEWeights weights{{}, owned(whole.c.w1_EFD), owned(whole.c.v1_EFD), owned(whole.c.w2_EFD)};
  Workspace workspace(moe_stage_workspace_bytes(config, rows, DType::kFloat32));
  moe_up(config, x_RD, {}, offsets, weights, gate, up, workspace.data(), workspace.bytes());
  activation_forward(config.activation, gate, up, h);
  moe_down(config, h, offsets, weights, y, workspace.data(), workspace.bytes());
  for (std::int64_t i = 0; i < rows * D; ++i) ASSERT_EQ(y.get(i), whole.y_RD.get(begin * D + i));
}

TEST(MoEStages, BadArgumentsAreNamed) {
  const Stages good = [] {
    Stages stages(MoECase(config_of(4, 2, 6, 5), 3, DType::kFloat32, 19));
    stages.forward();
    return stages;
  }();
  const auto error_after = [&](auto&& change) {
    Stages s = good;
    change(s);
    return message_of([&] {
      moe_up(s.c.config, s.c.x_TD, s.tokens_R, s.c.offsets_E1, s.c.weights(), s.c.gate_RF,
             s.c.up_RF, s.workspace.data(), s.workspace.bytes());
    });
  };
  EXPECT_EQ(error_after([](Stages&) {}), "no error");
  EXPECT_THAT(error_after([](Stages& s) { s.tokens_R.set(4, 3); }),
              HasSubstr("moe_up: tokens_R[4] is 3, but x has 3 rows"));
  EXPECT_THAT(error_after([](Stages& s) { s.c.offsets_E1.set(4, 7); }),
              HasSubstr("offsets_E1 end at 7, but there are 6 rows"));
  EXPECT_THAT(error_after([](Stages& s) { s.c.offsets_E1.set(2, -1); }),
              HasSubstr("offsets_E1 decrease"));
  EXPECT_THAT(error_after([](Stages& s) { s.tokens_R = Tensor(); }),
              HasSubstr("x is [3, 6] float32, expected [6, 6] float32"));
  EXPECT_THAT(error_after([](Stages& s) { s.c.up_RF = Tensor(); }), HasSubstr("up_RF is absent"));
  EXPECT_THAT(error_after([](Stages& s) { s.c.config.d_ffn = 0; }), HasSubstr("d_ffn 0"));
  EXPECT_THAT(error_after([](Stages& s) { s.c.config.expert_bias = true; }),
              HasSubstr("b1_EF is absent"));
  EXPECT_THAT(error_after([](Stages& s) { s.workspace = Workspace(64); }),
              HasSubstr("the workspace has 64 bytes"));
}

}  // namespace
}  // namespace dropless::testing
