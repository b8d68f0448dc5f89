// moe.h: checks; the layer on the CPU composed of its kernels, and the one place that lays out
// their workspace. On a GPU: moe_cuda.cc.
//
// Forward (rows r sorted by expert, t(r) the token of row r):
//   logits = x Wr^T -> weights, indices, losses -> rows, offsets, tokens
//   gate = x[t(r)] W1_e^T, up = x[t(r)] V1_e^T        gathered while the GEMM packs its operand
//   h = act(gate) * up, y = h W2_e, out = combine(y)
//
// Backward, with s_r the routing weight of row r:
//   g = d_out[t(r)] W2_e^T                            without s_r: d_s_r = <h, g> needs no y
//   s_r h, d_gate, d_up, d_s                          by one elementwise pass
//   dW2 = (s h)^T d_out[t(r)], dW1 = d_gate^T x[t(r)], dV1 = d_up^T x[t(r)]
//   d_x = combine(d_gate W1_e + d_up V1_e) + d_logits Wr, dWr = d_logits^T x
//
// The shared expert is one more expert that every token is routed to, with a constant weight: the
// same products with one group and no row list. Bias gradients are products with one row: ones (b1,
// bv1) or the routing weights (b2).
#include "dropless/moe.h"

#include <algorithm>

#include "dropless/permute.h"
#include "src/common/check.h"
#include "src/common/workspace.h"
#include "src/cpu/kernels.h"
#include "src/ops/expect.h"
#include "src/ops/moe_check.h"
#include "src/ops/moe_cuda.h"
#include "src/ops/moe_products.h"
#include "src/ops/moe_sizes.h"

namespace dropless {
namespace {

// Whether the experts' part of the output has a factor of its own.
bool scales_experts(const MoEConfig& config) {
  return config.shared_d_ffn > 0 && config.shared_weighted;
}

double experts_scale(const MoEConfig& c) {
  const double k = static_cast<double>(c.top_k);
  return scales_experts(c) ? k / (k + 1) : 1;
}

double shared_scale(const MoEConfig& c) {
  return scales_experts(c) ? 1 / (static_cast<double>(c.top_k) + 1) : 1;
}

struct ForwardBuffers {
  void *logits_TE, *route_partials, *h_RF, *y_RD;
  std::int32_t *tokens_per_expert_E, *order_partials, *tokens_R;
  void* weights_TK;  // scaled, with a weighted shared expert
  void *shared_h_TS, *shared_y_TD;
};

ForwardBuffers carve_forward(WorkspaceCarver& carver, const MoEConfig& config, const MoESizes& s) {
  const std::size_t element = dtype_bytes(s.dtype), sum = dtype_bytes(s.sums);
  return {.logits_TE = carver.take_bytes(s.T * s.E * sum),
          .route_partials = carver.take_bytes(cpu::route_partials_bytes(s.E, s.sums)),
          .h_RF = carver.take_bytes(s.R * s.F * element),
          .y_RD = carver.take_bytes(s.R * s.D * element),
          .tokens_per_expert_E = carver.take<std::int32_t>(s.E),
          .order_partials = carver.take<std::int32_t>(cpu::kMaxTokenChunks * s.E),
          .tokens_R = carver.take<std::int32_t>(s.R),
          .weights_TK = carver.take_bytes(scales_experts(config) ? s.R * sum : 0),
          .shared_h_TS = carver.take_bytes(s.T * s.S * element),
          .shared_y_TD = carver.take_bytes(s.S > 0 ? s.T * s.D * sum : 0)};
}

struct BackwardBuffers {
  void *logits_TE, *d_logits_TE;
  void* d_weights_TK;
  void* router_d_x_TD;
  void* g_RF;  // becomes d_gate
  void* d_up_RF;
  void* scaled_h_RF;  // dead once dW2 is there, then d_x_RD
  void* d_x_RD;
  std::int32_t *tokens_per_expert_E, *tokens_R;
  void* weights_TK;          // scaled, with a weighted shared expert
  void *weights_R, *ones_R;  // with expert biases
  void* shared_g_TS;         // becomes d_gate, as g_RF
  void *shared_d_up_TS, *shared_scaled_h_TS;
  void *shared_weights_T, *shared_d_weights_T;  // the constant weight; a gradient nobody wants
  std::int32_t* shared_rows_T;                  // token t is row t
};

BackwardBuffers carve_backward(WorkspaceCarver& carver, const MoEConfig& config,
                               const MoESizes& s) {
  const std::size_t element = dtype_bytes(s.dtype), sum = dtype_bytes(s.sums);
  BackwardBuffers b{};
  b.logits_TE = carver.take_bytes(s.T * s.E * sum);
  b.d_logits_TE = carver.take_bytes(s.T * s.E * sum);
  b.d_weights_TK = carver.take_bytes(s.R * sum);
  b.router_d_x_TD = carver.take_bytes(s.T * s.D * sum);
  b.g_RF = carver.take_bytes(s.R * s.F * element);
  b.d_up_RF = config.glu ? carver.take_bytes(s.R * s.F * element) : nullptr;
  b.scaled_h_RF = b.d_x_RD = carver.take_bytes(s.R * std::max(s.F, s.D) * element);
  b.tokens_per_expert_E = carver.take<std::int32_t>(s.E);
  b.tokens_R = carver.take<std::int32_t>(s.R);
  if (scales_experts(config)) b.weights_TK = carver.take_bytes(s.R * sum);
  if (config.expert_bias) {
    b.weights_R = carver.take_bytes(s.R * sum);
    b.ones_R = carver.take_bytes(s.R * sum);
  }
  if (s.S > 0) {
    b.shared_g_TS = carver.take_bytes(s.T * s.S * element);
    b.shared_d_up_TS = config.glu ? carver.take_bytes(s.T * s.S * element) : nullptr;
    b.shared_scaled_h_TS = carver.take_bytes(s.T * s.S * element);
    b.shared_weights_T = carver.take_bytes(s.T * sum);
    b.shared_d_weights_T = carver.take_bytes(s.T * sum);
    b.shared_rows_T = carver.take<std::int32_t>(s.T);
  }
  return b;
}

// What both directions do: the layer's tensors, the kernels to run, and its matrix products.
struct Layer : MoEProducts {
  const MoEConfig& config;
  const MoESizes& s;
  ConstTensorView x_TD;
  const MoEWeights& weights;
  Networks experts;
  std::int64_t all_tokens[2];

  Layer(const MoEConfig& config, const MoESizes& s, const ConstTensorView& x_TD,
        const MoEWeights& weights, const MoESaved& saved, const std::int32_t* tokens_R,
        GemmSpace space)
      : MoEProducts{cpu::kernels(config.backend), s.D, s.dtype, s.sums, space},
        config(config),
        s(s),
        x_TD(x_TD),
        weights(weights),
        experts{s.E, s.F, static_cast<const std::int64_t*>(saved.offsets_E1.data), tokens_R},
        all_tokens{0, s.T} {}

  Networks shared() const { return {1, s.S, all_tokens, nullptr}; }
  std::int64_t kept_rows() const { return experts.offsets[s.E]; }

  void logits(void* logits_TE) const {
    token_product(all_tokens, x_TD.data, s.dtype, weights.router_ED.data, s.E, s.D, true,
                  logits_TE);
  }

  // The elementwise middle of backward, for `tokens` of `top_k` rows each.
  void activation_gradient(std::int64_t top_k, const Networks& nets, const TensorView& gate,
                           const TensorView& up, const void* weights_TK,
                           const std::int32_t* rows_TK, void* g, void* d_up, void* scaled_h,
                           void* d_weights) const {
    kernels.expert_backward({.dtype = s.dtype,
                             .activation = config.activation,
                             .tokens = s.T,
                             .top_k = top_k,
                             .width = nets.width,
                             .gate_RF = gate.data,
                             .up_RF = up.data,
                             .weights_TK = weights_TK,
                             .rows_TK = rows_TK,
                             .g_RF = g,
                             .d_gate_RF = g,
                             .d_up_RF = d_up,
                             .scaled_h_RF = scaled_h,
                             .d_weights_TK = d_weights});
  }

  // gate and up of the networks, and their activation h.
  void up(const Networks& nets, std::int64_t rows, const ConstTensorView& w1,
          const ConstTensorView& b1, const ConstTensorView& v1, const ConstTensorView& bv1,
          const TensorView& gate, const TensorView& up, void* h) const {
    expand(nets, x_TD.data, w1, b1.data, gate.data);
    if (config.glu) expand(nets, x_TD.data, v1, bv1.data, up.data);
    kernels.activation_forward({.dtype = s.dtype,
                                .activation = config.activation,
                                .size = rows * nets.width,
                                .gate = gate.data,
                                .up = up.data,
                                .a = h});
  }
};

// The gradients that biases bring: their own, and <b2_e, d_out[t]> for the routing weights.
void bias_backward(const Layer& layer, const MoESaved& saved, const ConstTensorView& d_out_TD,
                   const void* weights_TK, const BackwardBuffers& buffers,
                   const MoEGradients& grads) {
  const MoESizes& s = layer.s;
  const Networks& experts = layer.experts;
  const auto* rows_TK = static_cast<const std::int32_t*>(saved.rows_TK.data);
  const auto* indices_TK = static_cast<const std::int32_t*>(saved.indices_TK.data);
  scale_sums(s.sums, s.R, 1, nullptr, buffers.ones_R);
  layer.token_product(layer.all_tokens, d_out_TD.data, s.dtype, layer.weights.b2_ED.data, s.E, s.D,
                      true, buffers.logits_TE);
  visit_sums(s.sums, [&](auto zero) {
    using A = decltype(zero);
    for (std::int64_t i = 0; i < s.R; ++i) {
      if (rows_TK[i] < 0) continue;
      static_cast<A*>(buffers.weights_R)[rows_TK[i]] = static_cast<const A*>(weights_TK)[i];
      static_cast<A*>(buffers.d_weights_TK)[i] +=
          static_cast<const A*>(buffers.logits_TE)[i / s.K * s.E + indices_TK[i]];
    }
  });
  layer.row_products(experts, 1, buffers.weights_R, s.sums, s.D, d_out_TD.data, experts.tokens,
                     grads.b2_ED);
  layer.row_products(experts, 1, buffers.ones_R, s.sums, s.F, buffers.g_RF, nullptr, grads.b1_EF);
  if (layer.config.glu) {
    layer.row_products(experts, 1, buffers.ones_R, s.sums, s.F, buffers.d_up_RF, nullptr,
                       grads.bv1_EF);
  }
}

// b1's and bv1's gradients are sums over tokens, b2's the sum of the weighted d_out.
void shared_bias_backward(const Layer& layer, const ConstTensorView& d_out_TD,
                          const BackwardBuffers& buffers, const MoEGradients& grads) {
  const MoESizes& s = layer.s;
  const Networks shared = layer.shared();
  layer.row_products(shared, 1, buffers.shared_weights_T, s.sums, s.D, d_out_TD.data, nullptr,
                     grads.shared_b2_D);
  scale_sums(s.sums, s.T, 1, nullptr, buffers.shared_weights_T);  // ones
  layer.row_products(shared, 1, buffers.shared_weights_T, s.sums, s.S, buffers.shared_g_TS, nullptr,
                     grads.shared_b1_S);
  if (layer.config.glu) {
    layer.row_products(shared, 1, buffers.shared_weights_T, s.sums, s.S, buffers.shared_d_up_TS,
                       nullptr, grads.shared_bv1_S);
  }
}

// The shared expert's weight gradients; its part of d_x is added to router_d_x_TD.
void shared_backward(const Layer& layer, const MoESaved& saved, const ConstTensorView& d_out_TD,
                     const BackwardBuffers& buffers, const MoEGradients& grads) {
  const MoESizes& s = layer.s;
  const Networks shared = layer.shared();
  for (std::int64_t t = 0; t < s.T; ++t) buffers.shared_rows_T[t] = static_cast<std::int32_t>(t);
  scale_sums(s.sums, s.T, shared_scale(layer.config), nullptr, buffers.shared_weights_T);
  layer.expand(shared, d_out_TD.data, layer.weights.shared_w2_SD, nullptr, buffers.shared_g_TS);
  layer.activation_gradient(1, shared, saved.shared_gate_TS, saved.shared_up_TS,
                            buffers.shared_weights_T, buffers.shared_rows_T, buffers.shared_g_TS,
                            buffers.shared_d_up_TS, buffers.shared_scaled_h_TS,
                            buffers.shared_d_weights_T);
  layer.weight_gradient(shared, buffers.shared_scaled_h_TS, d_out_TD.data, grads.shared_w2_SD);
  layer.weight_gradient(shared, buffers.shared_g_TS, layer.x_TD.data, grads.shared_w1_SD);
  if (layer.config.glu) {
    layer.weight_gradient(shared, buffers.shared_d_up_TS, layer.x_TD.data, grads.shared_v1_SD);
  }
  layer.contract(shared, buffers.shared_g_TS, layer.weights.shared_w1_SD, buffers.shared_d_up_TS,
                 layer.weights.shared_v1_SD, nullptr, buffers.router_d_x_TD, s.sums, true);
  if (layer.config.shared_bias) shared_bias_backward(layer, d_out_TD, buffers, grads);
}

// Of x's type, or fp32 beside 16 bits.
void expect_weight_gradient(const char* op, const char* name, const TensorView& view,
                            const MoESizes& s, Device device) {
  const bool added = dtype_bytes(s.dtype) == 2 && view.dtype == DType::kFloat32;
  expect_matrices(op, name, view, {{s.E, s.F, s.D}, added ? DType::kFloat32 : s.dtype}, device);
}

// From d_weights to d_logits, the router's weight gradient, and its part of d_x.
void router_backward(const Layer& layer, const MoEConfig& config, const MoESaved& saved,
                     const ConstTensorView& d_losses_2, const BackwardBuffers& buffers,
                     const TensorView& d_router_ED) {
  const MoESizes& s = layer.s;
  layer.kernels.histogram({.entries = s.R,
                           .bins = s.E,
                           .indices_N = static_cast<const std::int32_t*>(saved.indices_TK.data),
                           .counts_E = buffers.tokens_per_expert_E});
  layer.logits(buffers.logits_TE);
  layer.kernels.route_backward(
      {.config = config.route,
       .dtype = s.sums,
       .tokens = s.T,
       .experts = s.E,
       .top_k = s.K,
       .logits_TE = buffers.logits_TE,
       .indices_TK = static_cast<const std::int32_t*>(saved.indices_TK.data),
       .tokens_per_expert_E = buffers.tokens_per_expert_E,
       .d_weights_TK = buffers.d_weights_TK,
       .d_losses_2 = d_losses_2.data,
       .d_logits_TE = buffers.d_logits_TE});
  const Networks all_tokens{1, s.D, layer.all_tokens, nullptr};
  layer.row_products(all_tokens, s.E, buffers.d_logits_TE, s.sums, s.D, layer.x_TD.data, nullptr,
                     d_router_ED);
  layer.token_product(layer.all_tokens, buffers.d_logits_TE, s.sums, layer.weights.router_ED.data,
                      s.D, s.E, false, buffers.router_d_x_TD);
}

}  // namespace

std::string moe_unsupported(const MoEConfig& config, DType dtype, Device device) {
  if (device.type != DeviceType::kCuda) return "";
  if (config.shared_d_ffn != 0) return "the GPU kernels have no shared expert";
  return moe_cuda_problem(config, dtype, device);
}

std::size_t moe_forward_workspace_bytes(const MoEConfig& config, std::int64_t num_tokens,
                                        DType dtype, Device device) {
  check_sizes("moe_forward_workspace_bytes", config, num_tokens);
  expect_sums("moe_forward_workspace_bytes", dtype);
  if (device.type == DeviceType::kCuda) {
    return moe_cuda_forward_workspace_bytes(config, num_tokens, dtype, device);
  }
  return workspace_bytes_for(cpu::max_threads(), [&](WorkspaceCarver& carver) {
    carve_forward(carver, config, MoESizes(config, num_tokens, dtype));
  });
}

std::size_t moe_backward_workspace_bytes(const MoEConfig& config, std::int64_t num_tokens,
                                         DType dtype, Device device) {
  check_sizes("moe_backward_workspace_bytes", config, num_tokens);
  expect_sums("moe_backward_workspace_bytes", dtype);
  if (device.type == DeviceType::kCuda) {
    return moe_cuda_backward_workspace_bytes(config, num_tokens);
  }
  return workspace_bytes_for(cpu::max_threads(), [&](WorkspaceCarver& carver) {
    carve_backward(carver, config, MoESizes(config, num_tokens, dtype));
  });
}

void moe_forward(const MoEConfig& config, ConstTensorView x_TD, const MoEWeights& weights,
                 TensorView out_TD, TensorView losses_2, TensorView tokens_per_expert_E,
                 const MoESaved& saved, void* workspace, std::size_t workspace_bytes,
                 Stream stream) {
  const char* op = "moe_forward";
  const MoESizes s = check_inputs(op, config, x_TD, weights, saved);
  expect_tensor(op, "out_TD", out_TD, {{s.T, s.D}, s.dtype}, x_TD.device);
  expect_tensor_or_absent(op, "losses_2", losses_2, {{2}, s.sums}, x_TD.device);
  expect_tensor_or_absent(op, "tokens_per_expert_E", tokens_per_expert_E, {{s.E}, DType::kInt32},
                          x_TD.device);
  if (x_TD.device.type == DeviceType::kCuda) {
    expect_aligned(op, {out_TD});
    expect_workspace(op, workspace, workspace_bytes,
                     moe_cuda_forward_workspace_bytes(config, s.T, s.dtype, x_TD.device));
    moe_cuda_forward(config, x_TD, weights, out_TD, losses_2, tokens_per_expert_E, saved, workspace,
                     stream);
    return;
  }
  if (config.route.selection == RouteSelection::kGiven) {
    expect_indices(op, "saved.indices_TK", saved.indices_TK, s.E);
  }
  expect_workspace(
      op, workspace, workspace_bytes,
      workspace_bytes_for(1, [&](WorkspaceCarver& carver) { carve_forward(carver, config, s); }));

  WorkspaceCarver carver(workspace, workspace_bytes);
  const ForwardBuffers buffers = carve_forward(carver, config, s);
  const Layer layer(config, s, x_TD, weights, saved, buffers.tokens_R, carve_gemm_space(carver));
  const cpu::KernelTable& kernels = layer.kernels;
  auto* indices_TK = static_cast<std::int32_t*>(saved.indices_TK.data);
  auto* rows_TK = static_cast<std::int32_t*>(saved.rows_TK.data);

  layer.logits(buffers.logits_TE);
  kernels.route_forward({.config = config.route,
                         .dtype = s.sums,
                         .tokens = s.T,
                         .experts = s.E,
                         .top_k = s.K,
                         .logits_TE = buffers.logits_TE,
                         .bias_E = weights.selection_bias_E.data,
                         .weights_TK = saved.weights_TK.data,
                         .indices_TK = indices_TK,
                         .losses_2 = losses_2.data,
                         .tokens_per_expert_E = tokens_per_expert_E ? static_cast<std::int32_t*>(
                                                                          tokens_per_expert_E.data)
                                                                    : buffers.tokens_per_expert_E,
                         .partials = buffers.route_partials});
  kernels.dispatch_order({.tokens = s.T,
                          .experts = s.E,
                          .top_k = s.K,
                          .indices_TK = indices_TK,
                          .rows_TK = rows_TK,
                          .offsets_E1 = static_cast<std::int64_t*>(saved.offsets_E1.data),
                          .tokens_R = buffers.tokens_R,
                          .partials = buffers.order_partials,
                          .capacity = expert_capacity(config.capacity_factor, s.T, s.K, s.E)});

  layer.up(layer.experts, layer.kept_rows(), weights.w1_EFD, weights.b1_EF, weights.v1_EFD,
           weights.bv1_EF, saved.gate_RF, saved.up_RF, buffers.h_RF);
  layer.contract(layer.experts, buffers.h_RF, weights.w2_EFD, nullptr, {}, weights.b2_ED.data,
                 buffers.y_RD, s.dtype);
  if (s.S > 0) {
    layer.up(layer.shared(), s.T, weights.shared_w1_SD, weights.shared_b1_S, weights.shared_v1_SD,
             weights.shared_bv1_S, saved.shared_gate_TS, saved.shared_up_TS, buffers.shared_h_TS);
    layer.contract(layer.shared(), buffers.shared_h_TS, weights.shared_w2_SD, nullptr, {},
                   weights.shared_b2_D.data, buffers.shared_y_TD, s.sums);
  }
  const void* weights_TK = saved.weights_TK.data;
  if (scales_experts(config)) {
    scale_sums(s.sums, s.R, experts_scale(config), weights_TK, buffers.weights_TK);
    weights_TK = buffers.weights_TK;
  }
  kernels.combine({.dtype = s.dtype,
                   .tokens = s.T,
                   .top_k = s.K,
                   .width = s.D,
                   .y_RD = buffers.y_RD,
                   .weights_TK = weights_TK,
                   .rows_TK = rows_TK,
                   .base_TD = s.S > 0 ? buffers.shared_y_TD : nullptr,
                   .out_TD = out_TD.data,
                   .base_scale = shared_scale(config)});
}

void moe_backward(const MoEConfig& config, ConstTensorView x_TD, const MoEWeights& weights,
                  const MoESaved& saved, ConstTensorView d_out_TD, ConstTensorView d_losses_2,
                  const MoEGradients& grads, void* workspace, std::size_t workspace_bytes,
                  Stream stream) {
  const char* op = "moe_backward";
  const MoESizes s = check_inputs(op, config, x_TD, weights, saved);
  expect_tensor(op, "d_out_TD", d_out_TD, {{s.T, s.D}, s.dtype}, x_TD.device);
  expect_tensor_or_absent(op, "d_losses_2", d_losses_2, {{2}, s.sums}, x_TD.device);
  expect_tensor(op, "grads.x_TD", grads.x_TD, {{s.T, s.D}, s.dtype}, x_TD.device);
  expect_tensor(op, "grads.router_ED", grads.router_ED, {{s.E, s.D}, s.dtype}, x_TD.device);
  expect_weight_gradient(op, "grads.w1_EFD", grads.w1_EFD, s, x_TD.device);
  expect_weight_gradient(op, "grads.w2_EFD", grads.w2_EFD, s, x_TD.device);
  if (config.glu) {
    expect_weight_gradient(op, "grads.v1_EFD", grads.v1_EFD, s, x_TD.device);
  }
  check_options(op, config, s, grads, x_TD.device);
  if (x_TD.device.type == DeviceType::kCuda) {
    expect_aligned(op, {d_out_TD, grads.x_TD, grads.w1_EFD, grads.v1_EFD, grads.w2_EFD});
    expect_workspace(op, workspace, workspace_bytes,
                     moe_cuda_backward_workspace_bytes(config, s.T));
    moe_cuda_backward(config, x_TD, weights, saved, d_out_TD, d_losses_2, grads, workspace, stream);
    return;
  }
  check_routing(op, s, saved);
  expect_workspace(
      op, workspace, workspace_bytes,
      workspace_bytes_for(1, [&](WorkspaceCarver& carver) { carve_backward(carver, config, s); }));

  WorkspaceCarver carver(workspace, workspace_bytes);
  const BackwardBuffers buffers = carve_backward(carver, config, s);
  const auto* rows_TK = static_cast<const std::int32_t*>(saved.rows_TK.data);
  const Layer layer(config, s, x_TD, weights, saved, buffers.tokens_R, carve_gemm_space(carver));
  const cpu::KernelTable& kernels = layer.kernels;
  const Networks& experts = layer.experts;
  const std::int64_t kept = layer.kept_rows();
  std::fill_n(buffers.tokens_R, kept, -1);
  kernels.invert_rows(
      {.tokens = s.T, .top_k = s.K, .rows_TK = rows_TK, .tokens_R = buffers.tokens_R});
  DROPLESS_CHECK(
      std::find(buffers.tokens_R, buffers.tokens_R + kept, -1) == buffers.tokens_R + kept,
      concat(op, ": saved.rows_TK names a row twice"), "pass what moe_forward left in MoESaved");
  const void* weights_TK = saved.weights_TK.data;
  if (scales_experts(config)) {
    scale_sums(s.sums, s.R, experts_scale(config), weights_TK, buffers.weights_TK);
    weights_TK = buffers.weights_TK;
  }

  layer.expand(experts, d_out_TD.data, weights.w2_EFD, nullptr, buffers.g_RF);
  layer.activation_gradient(s.K, experts, saved.gate_RF, saved.up_RF, weights_TK, rows_TK,
                            buffers.g_RF, buffers.d_up_RF, buffers.scaled_h_RF,
                            buffers.d_weights_TK);
  layer.weight_gradient(experts, buffers.scaled_h_RF, d_out_TD.data, grads.w2_EFD);
  layer.weight_gradient(experts, buffers.g_RF, x_TD.data, grads.w1_EFD);
  if (config.glu) layer.weight_gradient(experts, buffers.d_up_RF, x_TD.data, grads.v1_EFD);
  if (config.expert_bias) bias_backward(layer, saved, d_out_TD, weights_TK, buffers, grads);
  if (scales_experts(config)) {
    scale_sums(s.sums, s.R, experts_scale(config), buffers.d_weights_TK, buffers.d_weights_TK);
  }

  router_backward(layer, config, saved, d_losses_2, buffers, grads.router_ED);
  if (s.S > 0) shared_backward(layer, saved, d_out_TD, buffers, grads);
  layer.contract(experts, buffers.g_RF, weights.w1_EFD, buffers.d_up_RF, weights.v1_EFD, nullptr,
                 buffers.d_x_RD, s.dtype);
  kernels.combine({.dtype = s.dtype,
                   .tokens = s.T,
                   .top_k = s.K,
                   .width = s.D,
                   .y_RD = buffers.d_x_RD,
                   .weights_TK = nullptr,
                   .rows_TK = rows_TK,
                   .base_TD = buffers.router_d_x_TD,
                   .out_TD = grads.x_TD.data});
}

}  // namespace dropless
