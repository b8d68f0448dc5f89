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
#include "dropless/moe.h"

#include <algorithm>

#include "src/common/check.h"
#include "src/common/dispatch.h"
#include "src/common/workspace.h"
#include "src/cpu/kernels.h"
#include "src/ops/expect.h"
#include "src/ops/moe_cuda.h"

namespace dropless {
namespace {

struct Sizes {
  std::int64_t T, D, F, E, K, R;
  DType dtype, sums;
  Sizes(const MoEConfig& config, std::int64_t tokens, DType dtype)
      : T(tokens),
        D(config.d_model),
        F(config.d_ffn),
        E(config.num_experts),
        K(config.top_k),
        R(T * K),
        dtype(dtype),
        sums(accumulator_dtype(dtype)) {}
};

// Matrix products take what the carver has left; a query counts one slot per thread.
struct GemmSpace {
  void* data;
  std::size_t bytes;
};

struct ForwardBuffers {
  void *logits_TE, *route_partials, *h_RF, *y_RD;
  std::int32_t *tokens_per_expert_E, *order_partials, *tokens_R;
};

ForwardBuffers carve_forward(WorkspaceCarver& carver, const Sizes& s) {
  const std::size_t element = dtype_bytes(s.dtype), sum = dtype_bytes(s.sums);
  return {.logits_TE = carver.take_bytes(s.T * s.E * sum),
          .route_partials = carver.take_bytes(cpu::route_partials_bytes(s.E, s.sums)),
          .h_RF = carver.take_bytes(s.R * s.F * element),
          .y_RD = carver.take_bytes(s.R * s.D * element),
          .tokens_per_expert_E = carver.take<std::int32_t>(s.E),
          .order_partials = carver.take<std::int32_t>(cpu::kMaxTokenChunks * s.E),
          .tokens_R = carver.take<std::int32_t>(s.R)};
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
};

BackwardBuffers carve_backward(WorkspaceCarver& carver, const Sizes& s, bool glu) {
  const std::size_t element = dtype_bytes(s.dtype), sum = dtype_bytes(s.sums);
  BackwardBuffers b{};
  b.logits_TE = carver.take_bytes(s.T * s.E * sum);
  b.d_logits_TE = carver.take_bytes(s.T * s.E * sum);
  b.d_weights_TK = carver.take_bytes(s.R * sum);
  b.router_d_x_TD = carver.take_bytes(s.T * s.D * sum);
  b.g_RF = carver.take_bytes(s.R * s.F * element);
  b.d_up_RF = glu ? carver.take_bytes(s.R * s.F * element) : nullptr;
  b.scaled_h_RF = b.d_x_RD = carver.take_bytes(s.R * std::max(s.F, s.D) * element);
  b.tokens_per_expert_E = carver.take<std::int32_t>(s.E);
  b.tokens_R = carver.take<std::int32_t>(s.R);
  return b;
}

GemmSpace carve_gemm_space(WorkspaceCarver& carver) {
  const std::size_t bytes = carver.left();
  return {carver.take_bytes(bytes), bytes};
}

// The bytes that must be there, with `slots` threads multiplying.
template <class Carve>
std::size_t workspace_bytes_for(int slots, Carve&& carve) {
  WorkspaceCarver carver;
  carve(carver);
  return carver.used() + slots * cpu::kGemmSlotBytes;
}

void check_config(const char* op, const MoEConfig& c) {
  DROPLESS_CHECK(
      c.d_model >= 1 && c.d_ffn >= 1 && c.num_experts >= 1,
      concat(op, ": d_model ", c.d_model, ", d_ffn ", c.d_ffn, ", num_experts ", c.num_experts),
      "all three must be at least 1");
  expect_route_config(op, c.route, c.num_experts, c.top_k);
}

void expect_supported(const char* op, const MoEConfig& config, DType dtype, Device device) {
  const std::string problem = moe_unsupported(config, dtype, device);
  DROPLESS_CHECK_KIND(ErrorKind::kUnsupported, problem.empty(), concat(op, ": ", problem));
}

// The copy engine reads and writes tensors in 16-byte units.
void expect_aligned(const char* op, std::initializer_list<ConstTensorView> views) {
  for (const ConstTensorView& view : views) {
    DROPLESS_CHECK(reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0,
                   concat(op, ": a tensor ", describe(view), " is at ", view.data,
                          ", not aligned to 16 bytes"));
  }
}

Sizes check_inputs(const char* op, const MoEConfig& config, const ConstTensorView& x_TD,
                   const MoEWeights& weights, const MoESaved& saved) {
  check_config(op, config);
  expect_floating(op, "x_TD", x_TD, 2);
  expect_supported(op, config, x_TD.dtype, x_TD.device);
  const Sizes s(config, x_TD.shape[0], x_TD.dtype);
  expect_row_count(op, s.T, s.K);
  const Expected weight{{s.E, s.F, s.D}, s.dtype}, rows{{s.R, s.F}, s.dtype};
  expect_tensor(op, "x_TD", x_TD, {{s.T, s.D}, s.dtype}, x_TD.device);
  expect_tensor(op, "router_ED", weights.router_ED, {{s.E, s.D}, s.dtype}, x_TD.device);
  expect_tensor(op, "w1_EFD", weights.w1_EFD, weight, x_TD.device);
  expect_tensor(op, "w2_EFD", weights.w2_EFD, weight, x_TD.device);
  expect_tensor(op, "saved.gate_RF", saved.gate_RF, rows, x_TD.device);
  if (config.glu) {
    expect_tensor(op, "v1_EFD", weights.v1_EFD, weight, x_TD.device);
    expect_tensor(op, "saved.up_RF", saved.up_RF, rows, x_TD.device);
  }
  DROPLESS_CHECK(config.glu || (!weights.v1_EFD && !saved.up_RF),
                 concat(op, ": v1_EFD is ", describe(weights.v1_EFD), " and saved.up_RF is ",
                        describe(saved.up_RF), ", but the layer is not gated"),
                 "leave both absent, or set MoEConfig::glu");
  if (config.selection_bias) {
    expect_tensor(op, "selection_bias_E", weights.selection_bias_E, {{s.E}, s.sums}, x_TD.device);
  }
  DROPLESS_CHECK(config.selection_bias || !weights.selection_bias_E,
                 concat(op, ": selection_bias_E is ", describe(weights.selection_bias_E),
                        ", but the layer has none"),
                 "leave it absent, or set MoEConfig::selection_bias");
  expect_tensor(op, "saved.weights_TK", saved.weights_TK, {{s.T, s.K}, s.sums}, x_TD.device);
  expect_tensor(op, "saved.indices_TK", saved.indices_TK, {{s.T, s.K}, DType::kInt32}, x_TD.device);
  expect_tensor(op, "saved.rows_TK", saved.rows_TK, {{s.T, s.K}, DType::kInt32}, x_TD.device);
  expect_tensor(op, "saved.offsets_E1", saved.offsets_E1, {{s.E + 1}, DType::kInt64}, x_TD.device);
  if (x_TD.device.type == DeviceType::kCuda) {
    expect_aligned(op, {x_TD, weights.router_ED, weights.w1_EFD, weights.v1_EFD, weights.w2_EFD,
                        saved.gate_RF, saved.up_RF});
  }
  return s;
}

// What both directions do: the layer's tensors, the kernels to run, and its matrix products.
struct Layer {
  const Sizes& s;
  const cpu::KernelTable& kernels;
  ConstTensorView x_TD;
  const MoEWeights& weights;
  const std::int64_t* offsets_E1;
  const std::int32_t* tokens_R;
  GemmSpace space;

  // One group of all tokens: out [T, n] = a [T, k] b, or a b^T.
  void router_product(const void* a, DType a_dtype, std::int64_t n, std::int64_t k,
                      bool transpose_b, void* out) const {
    const std::int64_t all_tokens[2] = {0, s.T};
    cpu::GroupedGemmArgs args{.groups = 1,
                              .n = n,
                              .k = k,
                              .offsets = all_tokens,
                              .transpose_b = transpose_b,
                              .num_terms = 1,
                              .terms = {},
                              .out = out,
                              .out_dtype = s.sums,
                              .workspace = space.data,
                              .workspace_bytes = space.bytes};
    args.terms[0] = {.a = a, .a_dtype = a_dtype, .b = weights.router_ED.data, .b_dtype = s.dtype};
    kernels.grouped_gemm(args);
  }

  void logits(void* logits_TE) const {
    router_product(x_TD.data, s.dtype, s.E, s.D, true, logits_TE);
  }

  // Each token's row of `a` times each expert's [F, D] weight, transposed: [R, F].
  void expand(const void* a_TD, const ConstTensorView& b_EFD, void* out_RF) const {
    cpu::GroupedGemmArgs args{.groups = s.E,
                              .n = s.F,
                              .k = s.D,
                              .offsets = offsets_E1,
                              .transpose_b = true,
                              .num_terms = 1,
                              .terms = {},
                              .out = out_RF,
                              .out_dtype = s.dtype,
                              .workspace = space.data,
                              .workspace_bytes = space.bytes};
    args.terms[0] = {
        .a = a_TD, .a_dtype = s.dtype, .a_rows = tokens_R, .b = b_EFD.data, .b_dtype = s.dtype};
    kernels.grouped_gemm(args);
  }

  // a1 B1 (+ a2 B2 where a2 is there): [R, D].
  void contract(const void* a1_RF, const ConstTensorView& b1_EFD, const void* a2_RF,
                const ConstTensorView& b2_EFD, void* out_RD) const {
    cpu::GroupedGemmArgs args{.groups = s.E,
                              .n = s.D,
                              .k = s.F,
                              .offsets = offsets_E1,
                              .transpose_b = false,
                              .num_terms = a2_RF == nullptr ? 1 : 2,
                              .terms = {},
                              .out = out_RD,
                              .out_dtype = s.dtype,
                              .workspace = space.data,
                              .workspace_bytes = space.bytes};
    args.terms[0] = {.a = a1_RF, .a_dtype = s.dtype, .b = b1_EFD.data, .b_dtype = s.dtype};
    args.terms[1] = {.a = a2_RF, .a_dtype = s.dtype, .b = b2_EFD.data, .b_dtype = s.dtype};
    kernels.grouped_gemm(args);
  }

  // out_e [F, D] = sum over e's rows of a[r]^T b[t(r)].
  void weight_gradient(const void* a_RF, const void* b_TD, void* out_EFD) const {
    kernels.grouped_gemm_weight_grad({.groups = s.E,
                                      .m = s.F,
                                      .n = s.D,
                                      .offsets = offsets_E1,
                                      .a = a_RF,
                                      .a_dtype = s.dtype,
                                      .b = b_TD,
                                      .b_dtype = s.dtype,
                                      .b_rows = tokens_R,
                                      .out = out_EFD,
                                      .out_dtype = s.dtype,
                                      .workspace = space.data,
                                      .workspace_bytes = space.bytes});
  }

  void router_weight_gradient(const void* d_logits_TE, void* out_ED) const {
    const std::int64_t all_tokens[2] = {0, s.T};
    kernels.grouped_gemm_weight_grad({.groups = 1,
                                      .m = s.E,
                                      .n = s.D,
                                      .offsets = all_tokens,
                                      .a = d_logits_TE,
                                      .a_dtype = s.sums,
                                      .b = x_TD.data,
                                      .b_dtype = s.dtype,
                                      .b_rows = nullptr,
                                      .out = out_ED,
                                      .out_dtype = s.dtype,
                                      .workspace = space.data,
                                      .workspace_bytes = space.bytes});
  }
};

// From d_weights to d_logits, the router's weight gradient, and its part of d_x.
void router_backward(const Layer& layer, const MoEConfig& config, const MoESaved& saved,
                     const ConstTensorView& d_losses_2, const BackwardBuffers& buffers,
                     void* d_router_ED) {
  const Sizes& s = layer.s;
  for (std::int64_t e = 0; e < s.E; ++e) {
    buffers.tokens_per_expert_E[e] =
        static_cast<std::int32_t>(layer.offsets_E1[e + 1] - layer.offsets_E1[e]);
  }
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
  layer.router_weight_gradient(buffers.d_logits_TE, d_router_ED);
  layer.router_product(buffers.d_logits_TE, s.sums, s.D, s.E, false, buffers.router_d_x_TD);
}

}  // namespace

std::string moe_unsupported(const MoEConfig& config, DType dtype, Device device) {
  return device.type == DeviceType::kCuda ? moe_cuda_problem(config, dtype, device) : "";
}

std::size_t moe_forward_workspace_bytes(const MoEConfig& config, std::int64_t num_tokens,
                                        DType dtype, Device device) {
  if (device.type == DeviceType::kCuda) return moe_cuda_forward_workspace_bytes(config, num_tokens);
  return workspace_bytes_for(cpu::max_threads(), [&](WorkspaceCarver& carver) {
    carve_forward(carver, Sizes(config, num_tokens, dtype));
  });
}

std::size_t moe_backward_workspace_bytes(const MoEConfig& config, std::int64_t num_tokens,
                                         DType dtype, Device device) {
  if (device.type == DeviceType::kCuda) {
    return moe_cuda_backward_workspace_bytes(config, num_tokens);
  }
  return workspace_bytes_for(cpu::max_threads(), [&](WorkspaceCarver& carver) {
    carve_backward(carver, Sizes(config, num_tokens, dtype), config.glu);
  });
}

void moe_forward(const MoEConfig& config, ConstTensorView x_TD, const MoEWeights& weights,
                 TensorView out_TD, TensorView losses_2, TensorView tokens_per_expert_E,
                 const MoESaved& saved, void* workspace, std::size_t workspace_bytes,
                 Stream stream) {
  const char* op = "moe_forward";
  const Sizes s = check_inputs(op, config, x_TD, weights, saved);
  expect_tensor(op, "out_TD", out_TD, {{s.T, s.D}, s.dtype}, x_TD.device);
  expect_tensor_or_absent(op, "losses_2", losses_2, {{2}, s.sums}, x_TD.device);
  expect_tensor_or_absent(op, "tokens_per_expert_E", tokens_per_expert_E, {{s.E}, DType::kInt32},
                          x_TD.device);
  if (x_TD.device.type == DeviceType::kCuda) {
    expect_aligned(op, {out_TD});
    expect_workspace(op, workspace, workspace_bytes, moe_cuda_forward_workspace_bytes(config, s.T));
    moe_cuda_forward(config, x_TD, weights, out_TD, losses_2, tokens_per_expert_E, saved, workspace,
                     stream);
    return;
  }
  if (config.route.selection == RouteSelection::kGiven) {
    expect_indices(op, "saved.indices_TK", saved.indices_TK, s.E);
  }
  expect_workspace(
      op, workspace, workspace_bytes,
      workspace_bytes_for(1, [&](WorkspaceCarver& carver) { carve_forward(carver, s); }));

  WorkspaceCarver carver(workspace, workspace_bytes);
  const ForwardBuffers buffers = carve_forward(carver, s);
  const cpu::KernelTable& kernels = cpu::kernels(config.backend);
  const auto* offsets_E1 = static_cast<const std::int64_t*>(saved.offsets_E1.data);
  const Layer layer{
      s, kernels, x_TD, weights, offsets_E1, buffers.tokens_R, carve_gemm_space(carver)};
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
                          .partials = buffers.order_partials});

  layer.expand(x_TD.data, weights.w1_EFD, saved.gate_RF.data);
  if (config.glu) layer.expand(x_TD.data, weights.v1_EFD, saved.up_RF.data);
  kernels.activation_forward({.dtype = s.dtype,
                              .activation = config.activation,
                              .size = s.R * s.F,
                              .gate = saved.gate_RF.data,
                              .up = saved.up_RF.data,
                              .a = buffers.h_RF});
  layer.contract(buffers.h_RF, weights.w2_EFD, nullptr, {}, buffers.y_RD);
  kernels.combine({.dtype = s.dtype,
                   .tokens = s.T,
                   .top_k = s.K,
                   .width = s.D,
                   .y_RD = buffers.y_RD,
                   .weights_TK = saved.weights_TK.data,
                   .rows_TK = rows_TK,
                   .base_TD = nullptr,
                   .out_TD = out_TD.data});
}

void moe_backward(const MoEConfig& config, ConstTensorView x_TD, const MoEWeights& weights,
                  const MoESaved& saved, ConstTensorView d_out_TD, ConstTensorView d_losses_2,
                  const MoEGradients& grads, void* workspace, std::size_t workspace_bytes,
                  Stream stream) {
  const char* op = "moe_backward";
  const Sizes s = check_inputs(op, config, x_TD, weights, saved);
  const Expected weight{{s.E, s.F, s.D}, s.dtype};
  expect_tensor(op, "d_out_TD", d_out_TD, {{s.T, s.D}, s.dtype}, x_TD.device);
  expect_tensor_or_absent(op, "d_losses_2", d_losses_2, {{2}, s.sums}, x_TD.device);
  expect_tensor(op, "grads.x_TD", grads.x_TD, {{s.T, s.D}, s.dtype}, x_TD.device);
  expect_tensor(op, "grads.router_ED", grads.router_ED, {{s.E, s.D}, s.dtype}, x_TD.device);
  expect_tensor(op, "grads.w1_EFD", grads.w1_EFD, weight, x_TD.device);
  expect_tensor(op, "grads.w2_EFD", grads.w2_EFD, weight, x_TD.device);
  if (config.glu) expect_tensor(op, "grads.v1_EFD", grads.v1_EFD, weight, x_TD.device);
  if (x_TD.device.type == DeviceType::kCuda) {
    expect_aligned(op, {d_out_TD, grads.x_TD, grads.w1_EFD, grads.v1_EFD, grads.w2_EFD});
    expect_workspace(op, workspace, workspace_bytes,
                     moe_cuda_backward_workspace_bytes(config, s.T));
    moe_cuda_backward(config, x_TD, weights, saved, d_out_TD, d_losses_2, grads, workspace, stream);
    return;
  }
  expect_offsets(op, saved.offsets_E1, s.R);
  expect_workspace(op, workspace, workspace_bytes,
                   workspace_bytes_for(
                       1, [&](WorkspaceCarver& carver) { carve_backward(carver, s, config.glu); }));

  WorkspaceCarver carver(workspace, workspace_bytes);
  const BackwardBuffers buffers = carve_backward(carver, s, config.glu);
  const cpu::KernelTable& kernels = cpu::kernels(config.backend);
  const auto* offsets_E1 = static_cast<const std::int64_t*>(saved.offsets_E1.data);
  const auto* rows_TK = static_cast<const std::int32_t*>(saved.rows_TK.data);
  const Layer layer{
      s, kernels, x_TD, weights, offsets_E1, buffers.tokens_R, carve_gemm_space(carver)};
  kernels.invert_rows(
      {.tokens = s.T, .top_k = s.K, .rows_TK = rows_TK, .tokens_R = buffers.tokens_R});

  layer.expand(d_out_TD.data, weights.w2_EFD, buffers.g_RF);
  kernels.expert_backward({.dtype = s.dtype,
                           .activation = config.activation,
                           .tokens = s.T,
                           .top_k = s.K,
                           .width = s.F,
                           .gate_RF = saved.gate_RF.data,
                           .up_RF = saved.up_RF.data,
                           .weights_TK = saved.weights_TK.data,
                           .rows_TK = rows_TK,
                           .g_RF = buffers.g_RF,
                           .d_gate_RF = buffers.g_RF,
                           .d_up_RF = buffers.d_up_RF,
                           .scaled_h_RF = buffers.scaled_h_RF,
                           .d_weights_TK = buffers.d_weights_TK});
  layer.weight_gradient(buffers.scaled_h_RF, d_out_TD.data, grads.w2_EFD.data);
  layer.weight_gradient(buffers.g_RF, x_TD.data, grads.w1_EFD.data);
  if (config.glu) layer.weight_gradient(buffers.d_up_RF, x_TD.data, grads.v1_EFD.data);

  router_backward(layer, config, saved, d_losses_2, buffers, grads.router_ED.data);
  layer.contract(buffers.g_RF, weights.w1_EFD, buffers.d_up_RF, weights.v1_EFD, buffers.d_x_RD);
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
