// moe_stages.h: checks, then the layer's products (moe_products.h) one by one.
#include "dropless/moe_stages.h"

#include "src/common/check.h"
#include "src/common/workspace.h"
#include "src/ops/expect.h"
#include "src/ops/moe_check.h"
#include "src/ops/moe_products.h"
#include "src/ops/moe_sizes.h"

namespace dropless {
namespace {

// Ones over the rows: a bias' gradient is a product with one row. With expert_bias.
void* carve_ones(WorkspaceCarver& carver, const MoEConfig& config, std::int64_t rows, DType sums) {
  return carver.take_bytes(config.expert_bias ? rows * dtype_bytes(sums) : 0);
}

// One call of a stage on rows, or on tokens.
struct Stage {
  const char* op;
  const MoEConfig& config;
  MoESizes s;  // T counts the rows of the call
  Device device;

  // `name` decides the number of rows and the type; it has `columns`.
  Stage(const char* op, const MoEConfig& config, const char* name, const ConstTensorView& view,
        std::int64_t columns)
      : op(op), config(config), s(config, 0, view.dtype), device(view.device) {
    check_networks_config(op, config);
    expect_floating(op, name, view, 2);
    expect_cpu(op, view);
    s.T = view.shape[0];
    expect_tensor(op, name, view, {{s.T, columns}, s.dtype}, device);
  }

  void expect(const char* name, const ConstTensorView& view, const Expected& expected) const {
    expect_tensor(op, name, view, expected, device);
  }
  void expect_rows(const char* name, const ConstTensorView& view, std::int64_t columns) const {
    expect(name, view, {{s.T, columns}, s.dtype});
  }

  // The experts' rows, within the T there are; x_rows: rows of what `tokens_R` names.
  Networks experts(const ConstTensorView& offsets_E1, const ConstTensorView& tokens_R,
                   std::int64_t x_rows) const {
    expect("offsets_E1", offsets_E1, {{s.E + 1}, DType::kInt64});
    const auto* offsets = static_cast<const std::int64_t*>(offsets_E1.data);
    expect_offsets(op, offsets_E1, offsets[s.E]);
    DROPLESS_CHECK(offsets[s.E] <= s.T, concat(op, ": offsets_E1 end at ", offsets[s.E],
                                               ", but there are ", s.T, " rows"));
    if (!tokens_R) return {s.E, s.F, offsets, nullptr};
    expect("tokens_R", tokens_R, {{s.T}, DType::kInt32});
    const auto* tokens = static_cast<const std::int32_t*>(tokens_R.data);
    for (std::int64_t r = 0; r < offsets[s.E]; ++r) {
      DROPLESS_CHECK(
          tokens[r] >= 0 && tokens[r] < x_rows,
          concat(op, ": tokens_R[", r, "] is ", tokens[r], ", but x has ", x_rows, " rows"));
    }
    return {s.E, s.F, offsets, tokens};
  }

  // x [its rows, D] and the weights of moe_up and its backward; `tensors`: weights or gradients.
  Networks check_x(const ConstTensorView& x, const ConstTensorView& tokens_R,
                   const ConstTensorView& offsets_E1) const {
    expect_floating(op, "x", x, 2);
    expect("x", x, {{tokens_R ? x.shape[0] : s.T, s.D}, s.dtype});
    return experts(offsets_E1, tokens_R, x.shape[0]);
  }
  template <class Tensors>
  void check_up(const Tensors& tensors) const {
    const Expected weight{{s.E, s.F, s.D}, s.dtype}, bias{{s.E, s.F}, s.dtype};
    expect_matrices(op, "w1_EFD", tensors.w1_EFD, weight, device);
    if (config.glu) {
      expect_matrices(op, "v1_EFD", tensors.v1_EFD, weight, device);
    } else {
      expect_optional(op, "v1_EFD", tensors.v1_EFD, false, weight, device);
    }
    expect_optional(op, "b1_EF", tensors.b1_EF, config.expert_bias, bias, device);
    expect_optional(op, "bv1_EF", tensors.bv1_EF, config.expert_bias && config.glu, bias, device);
  }
  template <class Tensors>
  void check_down(const Tensors& tensors) const {
    expect("w2_EFD", tensors.w2_EFD, {{s.E, s.F, s.D}, s.dtype});
    expect_optional(op, "b2_ED", tensors.b2_ED, config.expert_bias, {{s.E, s.D}, s.dtype}, device);
  }

  // The products, and ones over the rows for the gradients of biases.
  struct Work {
    MoEProducts products;
    void* ones_R;
  };
  Work work(void* workspace, std::size_t bytes, bool bias_gradients) const {
    const auto carve = [&](WorkspaceCarver& carver) {
      return bias_gradients ? carve_ones(carver, config, s.T, s.sums) : nullptr;
    };
    expect_workspace(op, workspace, bytes, workspace_bytes_for(1, carve));
    WorkspaceCarver carver(workspace, bytes);
    void* ones = carve(carver);
    if (bias_gradients && config.expert_bias) scale_sums(s.sums, s.T, 1, nullptr, ones);
    return {{cpu::kernels(config.backend), s.D, s.dtype, s.sums, carve_gemm_space(carver)}, ones};
  }
};

}  // namespace

std::size_t moe_stage_workspace_bytes(const MoEConfig& config, std::int64_t num_rows, DType dtype) {
  expect_bytes("moe_stage_workspace_bytes", "the workspace", {64, num_rows});
  expect_sums("moe_stage_workspace_bytes", dtype);
  return workspace_bytes_for(cpu::max_threads(), [&](WorkspaceCarver& carver) {
    carve_ones(carver, config, num_rows, accumulator_dtype(dtype));
  });
}

void moe_logits(const MoEConfig& config, ConstTensorView x_TD, ConstTensorView router_ED,
                TensorView logits_TE, void* workspace, std::size_t workspace_bytes) {
  const Stage stage("moe_logits", config, "x_TD", x_TD, config.d_model);
  const MoESizes& s = stage.s;
  stage.expect("router_ED", router_ED, {{s.E, s.D}, s.dtype});
  stage.expect("logits_TE", logits_TE, {{s.T, s.E}, s.sums});
  const std::int64_t all_tokens[2] = {0, s.T};
  stage.work(workspace, workspace_bytes, false)
      .products.token_product(all_tokens, x_TD.data, s.dtype, router_ED.data, s.E, s.D, true,
                              logits_TE.data);
}

void moe_logits_backward(const MoEConfig& config, ConstTensorView x_TD, ConstTensorView router_ED,
                         ConstTensorView d_logits_TE, TensorView d_x_TD, TensorView d_router_ED,
                         void* workspace, std::size_t workspace_bytes) {
  const Stage stage("moe_logits_backward", config, "x_TD", x_TD, config.d_model);
  const MoESizes& s = stage.s;
  stage.expect("router_ED", router_ED, {{s.E, s.D}, s.dtype});
  stage.expect("d_logits_TE", d_logits_TE, {{s.T, s.E}, s.sums});
  stage.expect("d_x_TD", d_x_TD, {{s.T, s.D}, s.sums});
  stage.expect("d_router_ED", d_router_ED, {{s.E, s.D}, s.dtype});
  const std::int64_t all_tokens[2] = {0, s.T};
  const Stage::Work work = stage.work(workspace, workspace_bytes, false);
  work.products.row_products({1, s.D, all_tokens, nullptr}, s.E, d_logits_TE.data, s.sums, s.D,
                             x_TD.data, nullptr, d_router_ED);
  work.products.token_product(all_tokens, d_logits_TE.data, s.sums, router_ED.data, s.D, s.E, false,
                              d_x_TD.data);
}

void moe_up(const MoEConfig& config, ConstTensorView x, ConstTensorView tokens_R,
            ConstTensorView offsets_E1, const MoEWeights& weights, TensorView gate_RF,
            TensorView up_RF, void* workspace, std::size_t workspace_bytes) {
  const Stage stage("moe_up", config, "gate_RF", gate_RF, config.d_ffn);
  const MoESizes& s = stage.s;
  stage.check_up(weights);
  expect_optional(stage.op, "up_RF", up_RF, config.glu, {{s.T, s.F}, s.dtype}, stage.device);
  const Networks experts = stage.check_x(x, tokens_R, offsets_E1);
  const MoEProducts products = stage.work(workspace, workspace_bytes, false).products;
  products.expand(experts, x.data, weights.w1_EFD, weights.b1_EF.data, gate_RF.data);
  if (!config.glu) return;
  products.expand(experts, x.data, weights.v1_EFD, weights.bv1_EF.data, up_RF.data);
}

void moe_up_backward(const MoEConfig& config, ConstTensorView x, ConstTensorView tokens_R,
                     ConstTensorView offsets_E1, const MoEWeights& weights,
                     ConstTensorView d_gate_RF, ConstTensorView d_up_RF, TensorView d_x_RD,
                     const MoEGradients& grads, void* workspace, std::size_t workspace_bytes) {
  const Stage stage("moe_up_backward", config, "d_gate_RF", d_gate_RF, config.d_ffn);
  const MoESizes& s = stage.s;
  stage.check_up(weights);
  stage.check_up(grads);
  expect_optional(stage.op, "d_up_RF", d_up_RF, config.glu, {{s.T, s.F}, s.dtype}, stage.device);
  stage.expect_rows("d_x_RD", d_x_RD, s.D);
  const Networks experts = stage.check_x(x, tokens_R, offsets_E1);
  const Stage::Work work = stage.work(workspace, workspace_bytes, true);
  const Networks rows{experts.groups, experts.width, experts.offsets, nullptr};
  const auto gradients_of = [&](const ConstTensorView& d_RF, const TensorView& weight,
                                const TensorView& bias) {
    work.products.weight_gradient(experts, d_RF.data, x.data, weight);
    if (!config.expert_bias) return;
    work.products.row_products(rows, 1, work.ones_R, s.sums, s.F, d_RF.data, nullptr, bias);
  };
  gradients_of(d_gate_RF, grads.w1_EFD, grads.b1_EF);
  if (config.glu) gradients_of(d_up_RF, grads.v1_EFD, grads.bv1_EF);
  work.products.contract(rows, d_gate_RF.data, weights.w1_EFD, d_up_RF.data, weights.v1_EFD,
                         nullptr, d_x_RD.data, s.dtype);
}

void moe_down(const MoEConfig& config, ConstTensorView h_RF, ConstTensorView offsets_E1,
              const MoEWeights& weights, TensorView y_RD, void* workspace,
              std::size_t workspace_bytes) {
  const Stage stage("moe_down", config, "h_RF", h_RF, config.d_ffn);
  stage.check_down(weights);
  stage.expect_rows("y_RD", y_RD, stage.s.D);
  const Networks experts = stage.experts(offsets_E1, {}, 0);
  stage.work(workspace, workspace_bytes, false)
      .products.contract(experts, h_RF.data, weights.w2_EFD, nullptr, {}, weights.b2_ED.data,
                         y_RD.data, stage.s.dtype);
}

void moe_down_backward(const MoEConfig& config, ConstTensorView h_RF, ConstTensorView offsets_E1,
                       const MoEWeights& weights, ConstTensorView d_y_RD, TensorView d_h_RF,
                       const MoEGradients& grads, void* workspace, std::size_t workspace_bytes) {
  const Stage stage("moe_down_backward", config, "h_RF", h_RF, config.d_ffn);
  const MoESizes& s = stage.s;
  stage.check_down(weights);
  stage.check_down(grads);
  stage.expect_rows("d_y_RD", d_y_RD, s.D);
  stage.expect_rows("d_h_RF", d_h_RF, s.F);
  const Networks experts = stage.experts(offsets_E1, {}, 0);
  const Stage::Work work = stage.work(workspace, workspace_bytes, true);
  work.products.weight_gradient(experts, h_RF.data, d_y_RD.data, grads.w2_EFD);
  if (config.expert_bias) {
    work.products.row_products(experts, 1, work.ones_R, s.sums, s.D, d_y_RD.data, nullptr,
                               grads.b2_ED);
  }
  work.products.expand(experts, d_y_RD.data, weights.w2_EFD, nullptr, d_h_RF.data);
}

}  // namespace dropless
