// moe_cuda.h: the order of the kernels, and the one place that lays out their workspace.
//
// Forward (rows r sorted by expert, t(r) the token of row r):
//   logits = x Wr^T -> weights, indices, losses -> rows, offsets, row tiles
//   x_RD[r] = x[t(r)];  gate = x_RD W1_e^T, up = x_RD V1_e^T, h = act(gate) up   in one kernel
//   y = h W2_e (over x_RD's memory);  out = combine(y)
//
// Backward, s_r the routing weight of row r:
//   d_out_RD[r] = d_out[t(r)];  with g = d_out_RD W2_e^T, in one kernel:
//     gate <- d_gate, up <- d_up, scaled_h = s h, d_s = <g, h>
//   dW2 = scaled_h^T d_out_RD
//   d_s -> d_logits -> dWr, and the router's part of d_x
//   x_RD[r] = x[t(r)] (over d_out_RD);  dW1 = d_gate^T x_RD, dV1 = d_up^T x_RD
//   d_x_RD = d_gate W1_e + d_up V1_e (over x_RD);  d_x += combine(d_x_RD)
//
// No size depends on the routing: nothing waits for the device.
#include "src/ops/moe_cuda.h"

#include <algorithm>

#include "src/common/check.h"
#include "src/common/math.h"
#include "src/common/workspace.h"
#include "src/cuda/kernels.h"
#include "src/ops/moe_sizes.h"

namespace dropless {
namespace {

constexpr int kRowTile = 128;  // rows of the matrix products' tiles

struct Sizes : MoESizes {
  std::int64_t P;  // columns of a row of logits in memory
  Sizes(const MoEConfig& config, std::int64_t tokens)
      : MoESizes(config, tokens, DType::kBFloat16), P(cuda::router_pitch(E)) {}
};

struct ForwardBuffers {
  float* logits_TP;
  void *router_space, *route_space, *order_space, *row_tiles;
  void* h_RF;
  void* rows_RD;  // x_RD, then y
};

ForwardBuffers carve_forward(WorkspaceCarver& carver, const Sizes& s) {
  return {.logits_TP = carver.take<float>(s.T * s.P),
          .router_space = carver.take_bytes(cuda::router_workspace_bytes(s.T, s.D, s.E)),
          .route_space = carver.take_bytes(cuda::route_workspace_bytes(s.T, s.E)),
          .order_space = carver.take_bytes(cuda::dispatch_order_workspace_bytes(s.T, s.K, s.E)),
          .row_tiles = carver.take_bytes(cuda::row_tiles_bytes(s.R, s.E, kRowTile)),
          .h_RF = carver.take<std::uint16_t>(s.R * s.F),
          .rows_RD = carver.take<std::uint16_t>(s.R * s.D)};
}

struct BackwardBuffers {
  float *logits_TP, *d_logits_TP, *weights_R, *d_scores_NR, *d_weights_TK;
  std::int32_t* tokens_per_expert_E;
  void *router_space, *row_tiles;
  void* scaled_h_RF;
  void* rows_RD;  // d_out_RD, then x_RD, then d_x_RD
};

std::int64_t score_parts(const Sizes& s) { return ceil_div(s.F, cuda::kActivationGradColumns); }

BackwardBuffers carve_backward(WorkspaceCarver& carver, const Sizes& s) {
  return {.logits_TP = carver.take<float>(s.T * s.P),
          .d_logits_TP = carver.take<float>(s.T * s.P),
          .weights_R = carver.take<float>(s.R),
          .d_scores_NR = carver.take<float>(score_parts(s) * s.R),
          .d_weights_TK = carver.take<float>(s.R),
          .tokens_per_expert_E = carver.take<std::int32_t>(s.E),
          .router_space = carver.take_bytes(cuda::router_workspace_bytes(s.T, s.D, s.E)),
          .row_tiles = carver.take_bytes(cuda::row_tiles_bytes(s.R, s.E, kRowTile)),
          .scaled_h_RF = carver.take<std::uint16_t>(s.R * s.F),
          .rows_RD = carver.take<std::uint16_t>(s.R * s.D)};
}

template <class T, class View>
T* data_of(const View& view) {
  return static_cast<T*>(view.data);
}

}  // namespace

std::string moe_cuda_problem(const MoEConfig& config, DType dtype, Device device) {
  if (config.backend == Backend::kReference) return "the reference backend runs on the CPU only";
  if (dtype != DType::kBFloat16) {
    return concat("the GPU kernels take bfloat16, not ", dtype_name(dtype));
  }
  if (config.d_model % 8 != 0 || config.d_ffn % 8 != 0) {
    return concat("the GPU kernels need widths that are multiples of 8, not d_model ",
                  config.d_model, ", d_ffn ", config.d_ffn);
  }
  if (config.num_experts > 1024) {
    return concat("the GPU kernels take at most 1024 experts, not ", config.num_experts);
  }
  if (config.route != RouteConfig{.normalize_p = config.route.normalize_p} ||
      config.selection_bias) {
    return "the GPU router has softmax scores and plain top-k: no sigmoid, groups, selection bias, "
           "scaling factor, uniform or given indices";
  }
  return cuda::device_problem(device.index);
}

std::size_t moe_cuda_forward_workspace_bytes(const MoEConfig& config, std::int64_t num_tokens) {
  WorkspaceCarver carver;
  carve_forward(carver, Sizes(config, num_tokens));
  return carver.used();
}

std::size_t moe_cuda_backward_workspace_bytes(const MoEConfig& config, std::int64_t num_tokens) {
  WorkspaceCarver carver;
  carve_backward(carver, Sizes(config, num_tokens));
  return carver.used();
}

void moe_cuda_forward(const MoEConfig& config, const ConstTensorView& x_TD,
                      const MoEWeights& weights, const TensorView& out_TD,
                      const TensorView& losses_2, const TensorView& tokens_per_expert_E,
                      const MoESaved& saved, void* workspace, Stream stream) {
  const Sizes s(config, x_TD.shape[0]);
  const cuda::CurrentDevice device(x_TD.device.index);
  WorkspaceCarver carver(workspace, 0);
  const ForwardBuffers buffers = carve_forward(carver, s);
  const TensorView h_RF(buffers.h_RF, x_TD.dtype, {s.R, s.F}, x_TD.device);
  const TensorView rows_RD(buffers.rows_RD, x_TD.dtype, {s.R, s.D}, x_TD.device);
  auto* rows_TK = data_of<std::int32_t>(saved.rows_TK);

  cuda::router_logits(x_TD, weights.router_ED, buffers.logits_TP, buffers.router_space, stream);
  cuda::route_forward(buffers.logits_TP, s.P, s.T, s.E, s.K, config.route.normalize_p,
                      data_of<float>(saved.weights_TK), data_of<std::int32_t>(saved.indices_TK),
                      data_of<float>(losses_2), data_of<std::int32_t>(tokens_per_expert_E),
                      buffers.route_space, stream);
  cuda::dispatch_order(data_of<std::int32_t>(saved.indices_TK), nullptr, s.T, s.K, s.E, rows_TK,
                       data_of<std::int64_t>(saved.offsets_E1), nullptr, nullptr,
                       buffers.order_space, stream);
  if (s.R == 0) return;
  cuda::build_row_tiles(data_of<std::int64_t>(saved.offsets_E1), s.E, kRowTile, buffers.row_tiles,
                        stream);
  cuda::gather(x_TD, rows_TK, s.K, rows_RD, stream);
  cuda::grouped_gemm_activation(config.activation, rows_RD, weights.w1_EFD, weights.v1_EFD,
                                buffers.row_tiles, saved.gate_RF, saved.up_RF, h_RF, stream);
  cuda::grouped_gemm(h_RF, weights.w2_EFD, true, buffers.row_tiles, rows_RD,
                     cuda::choose_grouped_gemm(s.D), stream);
  cuda::combine(rows_RD, data_of<float>(saved.weights_TK), rows_TK, s.K, false, out_TD, stream);
}

void moe_cuda_backward(const MoEConfig& config, const ConstTensorView& x_TD,
                       const MoEWeights& weights, const MoESaved& saved,
                       const ConstTensorView& d_out_TD, const ConstTensorView& d_losses_2,
                       const MoEGradients& grads, void* workspace, Stream stream) {
  const Sizes s(config, x_TD.shape[0]);
  const cuda::CurrentDevice device(x_TD.device.index);
  WorkspaceCarver carver(workspace, 0);
  const BackwardBuffers buffers = carve_backward(carver, s);
  const TensorView scaled_h_RF(buffers.scaled_h_RF, x_TD.dtype, {s.R, s.F}, x_TD.device);
  const TensorView rows_RD(buffers.rows_RD, x_TD.dtype, {s.R, s.D}, x_TD.device);
  const auto* rows_TK = data_of<std::int32_t>(saved.rows_TK);
  const auto* offsets_E1 = data_of<std::int64_t>(saved.offsets_E1);
  const auto weight_gradient = [&](const TensorView& a_RF, const TensorView& out_EFD) {
    cuda::grouped_gemm_weight_grad(a_RF, rows_RD, offsets_E1, out_EFD, false,
                                   cuda::choose_weight_grad(s.D), stream);
  };

  cuda::prepare_backward(data_of<float>(saved.weights_TK), rows_TK, s.R, offsets_E1, s.E,
                         buffers.weights_R, buffers.tokens_per_expert_E, stream);
  cuda::build_row_tiles(offsets_E1, s.E, kRowTile, buffers.row_tiles, stream);
  cuda::gather(d_out_TD, rows_TK, s.K, rows_RD, stream);
  cuda::grouped_gemm_activation_grad(config.activation, rows_RD, weights.w2_EFD, buffers.weights_R,
                                     buffers.row_tiles, saved.gate_RF, saved.up_RF, scaled_h_RF,
                                     buffers.d_scores_NR, stream);
  weight_gradient(scaled_h_RF, grads.w2_EFD);

  cuda::sum_score_gradients(buffers.d_scores_NR, score_parts(s), rows_TK, s.R, buffers.d_weights_TK,
                            stream);
  cuda::router_logits(x_TD, weights.router_ED, buffers.logits_TP, buffers.router_space, stream);
  cuda::route_backward(buffers.logits_TP, s.P, s.T, s.E, s.K, config.route.normalize_p,
                       data_of<std::int32_t>(saved.indices_TK), buffers.tokens_per_expert_E,
                       buffers.d_weights_TK, data_of<const float>(d_losses_2), buffers.d_logits_TP,
                       stream);
  cuda::router_backward(x_TD, weights.router_ED, buffers.d_logits_TP, grads.x_TD, grads.router_ED,
                        buffers.router_space, stream);

  cuda::gather(x_TD, rows_TK, s.K, rows_RD, stream);
  weight_gradient(saved.gate_RF, grads.w1_EFD);
  if (config.glu) {
    weight_gradient(saved.up_RF, grads.v1_EFD);
    cuda::grouped_gemm_two_terms(saved.gate_RF, weights.w1_EFD, saved.up_RF, weights.v1_EFD,
                                 buffers.row_tiles, rows_RD, cuda::choose_grouped_gemm(s.D),
                                 stream);
  } else {
    cuda::grouped_gemm(saved.gate_RF, weights.w1_EFD, true, buffers.row_tiles, rows_RD,
                       cuda::choose_grouped_gemm(s.D), stream);
  }
  cuda::combine(rows_RD, nullptr, rows_TK, s.K, true, grads.x_TD, stream);
}

}  // namespace dropless
