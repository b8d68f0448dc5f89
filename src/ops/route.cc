// route.h: checks, then the CPU kernels.
#include "dropless/route.h"

#include "src/common/check.h"
#include "src/common/dispatch.h"
#include "src/common/workspace.h"
#include "src/cpu/kernels.h"
#include "src/ops/expect.h"

namespace dropless {
namespace {

struct Buffers {
  void* partials;
  std::int32_t* tokens_per_expert_E;
};

Buffers carve(WorkspaceCarver& carver, std::int64_t experts, DType dtype) {
  return {carver.take_bytes(cpu::route_partials_bytes(experts, dtype)),
          carver.take<std::int32_t>(experts)};
}

void check(const char* op, const RouteConfig& config, const ConstTensorView& logits_TE,
           const ConstTensorView& indices_TK) {
  expect_floating(op, "logits_TE", logits_TE, 2);
  expect_cpu(op, logits_TE);
  expect_tensor(op, "logits_TE", logits_TE,
                {{logits_TE.shape[0], logits_TE.shape[1]}, accumulator_dtype(logits_TE.dtype)},
                Device{});
  DROPLESS_CHECK(indices_TK.rank == 2, concat(op, ": indices_TK is ", describe(indices_TK)));
  const std::int64_t top_k = indices_TK.shape[1];
  expect_route_config(op, config, logits_TE.shape[1], top_k);
  expect_tensor(op, "indices_TK", indices_TK, {{logits_TE.shape[0], top_k}, DType::kInt32},
                logits_TE.device);
  expect_row_count(op, logits_TE.shape[0], top_k);
}

}  // namespace

std::size_t route_workspace_bytes(std::int64_t num_tokens, std::int64_t num_experts, DType dtype) {
  const char* op = "route_workspace_bytes";
  expect_sums(op, dtype);
  expect_bytes(op, "the logits", {num_tokens, num_experts});
  expect_bytes(op, "the workspace", {8, cpu::kMaxTokenChunks, num_experts});
  WorkspaceCarver carver;
  carve(carver, num_experts, dtype);
  return carver.used();
}

void route_forward(const RouteConfig& config, ConstTensorView logits_TE, ConstTensorView bias_E,
                   TensorView weights_TK, TensorView indices_TK, TensorView losses_2,
                   TensorView tokens_per_expert_E, void* workspace, std::size_t workspace_bytes,
                   Backend backend) {
  const char* op = "route_forward";
  check(op, config, logits_TE, indices_TK);
  const std::int64_t T = logits_TE.shape[0], E = logits_TE.shape[1], K = indices_TK.shape[1];
  const DType dtype = logits_TE.dtype;
  if (config.selection == RouteSelection::kGiven) expect_indices(op, "indices_TK", indices_TK, E);
  expect_tensor_or_absent(op, "bias_E", bias_E, {{E}, dtype}, logits_TE.device);
  expect_tensor(op, "weights_TK", weights_TK, {{T, K}, dtype}, logits_TE.device);
  expect_tensor_or_absent(op, "losses_2", losses_2, {{2}, dtype}, logits_TE.device);
  expect_tensor_or_absent(op, "tokens_per_expert_E", tokens_per_expert_E, {{E}, DType::kInt32},
                          logits_TE.device);
  expect_workspace(op, workspace, workspace_bytes, route_workspace_bytes(T, E, dtype));
  WorkspaceCarver carver(workspace, workspace_bytes);
  const Buffers buffers = carve(carver, E, dtype);

  const cpu::RouteForwardArgs args{
      .config = config,
      .dtype = dtype,
      .tokens = T,
      .experts = E,
      .top_k = K,
      .logits_TE = logits_TE.data,
      .bias_E = bias_E.data,
      .weights_TK = weights_TK.data,
      .indices_TK = static_cast<std::int32_t*>(indices_TK.data),
      .losses_2 = losses_2.data,
      .tokens_per_expert_E = tokens_per_expert_E
                                 ? static_cast<std::int32_t*>(tokens_per_expert_E.data)
                                 : buffers.tokens_per_expert_E,
      .partials = buffers.partials};
  cpu::kernels(backend).route_forward(args);
}

void route_backward(const RouteConfig& config, ConstTensorView logits_TE,
                    ConstTensorView indices_TK, ConstTensorView tokens_per_expert_E,
                    ConstTensorView d_weights_TK, ConstTensorView d_losses_2,
                    TensorView d_logits_TE, Backend backend) {
  const char* op = "route_backward";
  check(op, config, logits_TE, indices_TK);
  const std::int64_t T = logits_TE.shape[0], E = logits_TE.shape[1], K = indices_TK.shape[1];
  const DType dtype = logits_TE.dtype;
  expect_indices(op, "indices_TK", indices_TK, E);
  expect_tensor(op, "d_weights_TK", d_weights_TK, {{T, K}, dtype}, logits_TE.device);
  expect_tensor(op, "d_logits_TE", d_logits_TE, {{T, E}, dtype}, logits_TE.device);
  DROPLESS_CHECK(logits_TE.numel() == 0 || d_logits_TE.data != logits_TE.data,
                 concat(op, ": d_logits_TE is the memory of logits_TE"),
                 "logits are still read while gradients are written: pass another tensor");
  expect_tensor_or_absent(op, "d_losses_2", d_losses_2, {{2}, dtype}, logits_TE.device);
  if (d_losses_2) {
    expect_tensor(op, "tokens_per_expert_E", tokens_per_expert_E, {{E}, DType::kInt32},
                  logits_TE.device);
  }

  const cpu::RouteBackwardArgs args{
      .config = config,
      .dtype = dtype,
      .tokens = T,
      .experts = E,
      .top_k = K,
      .logits_TE = logits_TE.data,
      .indices_TK = static_cast<const std::int32_t*>(indices_TK.data),
      .tokens_per_expert_E = static_cast<const std::int32_t*>(tokens_per_expert_E.data),
      .d_weights_TK = d_weights_TK.data,
      .d_losses_2 = d_losses_2.data,
      .d_logits_TE = d_logits_TE.data};
  cpu::kernels(backend).route_backward(args);
}

void route_jitter(ConstTensorView x_TD, double epsilon, std::uint64_t seed, std::uint64_t stream,
                  TensorView out_TD, Backend backend) {
  const char* op = "route_jitter";
  expect_floating(op, "x_TD", x_TD, 2);
  expect_cpu(op, x_TD);
  const Expected like_x{{x_TD.shape[0], x_TD.shape[1]}, x_TD.dtype};
  expect_tensor(op, "x_TD", x_TD, like_x, Device{});
  expect_tensor(op, "out_TD", out_TD, like_x, x_TD.device);
  DROPLESS_CHECK(epsilon >= 0 && epsilon < 1, concat(op, ": epsilon is ", epsilon),
                 "use 0 (off) or an epsilon below 1");
  cpu::kernels(backend).route_jitter({.dtype = x_TD.dtype,
                                      .size = x_TD.numel(),
                                      .epsilon = epsilon,
                                      .seed = seed,
                                      .stream = stream,
                                      .x = x_TD.data,
                                      .out = out_TD.data});
}

}  // namespace dropless
