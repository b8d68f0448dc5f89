// route.h: checks, then the CPU kernel.
#include "dropless/route.h"

#include <cmath>

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

void check(const char* op, const ConstTensorView& logits_TE, double normalize_p,
           const ConstTensorView& indices_TK) {
  expect_floating(op, "logits_TE", logits_TE, 2);
  expect_cpu(op, logits_TE);
  expect_tensor(op, "logits_TE", logits_TE,
                {{logits_TE.shape[0], logits_TE.shape[1]}, accumulator_dtype(logits_TE.dtype)},
                Device{});
  DROPLESS_CHECK(indices_TK.rank == 2, concat(op, ": indices_TK is ", describe(indices_TK)));
  const std::int64_t experts = logits_TE.shape[1], top_k = indices_TK.shape[1];
  DROPLESS_CHECK(top_k >= 1 && top_k <= experts,
                 concat(op, ": cannot choose ", top_k, " of ", experts, " experts per token"),
                 "top_k must lie between 1 and the number of experts");
  DROPLESS_CHECK(normalize_p >= 0 && std::isfinite(normalize_p),
                 concat(op, ": normalize_p is ", normalize_p), "use 0 (off) or a finite p > 0");
  expect_tensor(op, "indices_TK", indices_TK, {{logits_TE.shape[0], top_k}, DType::kInt32},
                logits_TE.device);
  expect_row_count(op, logits_TE.shape[0], top_k);
}

}  // namespace

std::size_t route_workspace_bytes(std::int64_t, std::int64_t num_experts, DType dtype) {
  WorkspaceCarver carver;
  carve(carver, num_experts, dtype);
  return carver.used();
}

void route_forward(ConstTensorView logits_TE, double normalize_p, TensorView weights_TK,
                   TensorView indices_TK, TensorView losses_2, TensorView tokens_per_expert_E,
                   void* workspace, std::size_t workspace_bytes, Backend backend) {
  const char* op = "route_forward";
  check(op, logits_TE, normalize_p, indices_TK);
  const std::int64_t T = logits_TE.shape[0], E = logits_TE.shape[1], K = indices_TK.shape[1];
  const DType dtype = logits_TE.dtype;
  expect_tensor(op, "weights_TK", weights_TK, {{T, K}, dtype}, logits_TE.device);
  expect_tensor_or_absent(op, "losses_2", losses_2, {{2}, dtype}, logits_TE.device);
  expect_tensor_or_absent(op, "tokens_per_expert_E", tokens_per_expert_E, {{E}, DType::kInt32},
                          logits_TE.device);
  expect_workspace(op, workspace, workspace_bytes, route_workspace_bytes(T, E, dtype));
  WorkspaceCarver carver(workspace, workspace_bytes);
  const Buffers buffers = carve(carver, E, dtype);

  const cpu::RouteForwardArgs args{
      .dtype = dtype,
      .tokens = T,
      .experts = E,
      .top_k = K,
      .normalize_p = normalize_p,
      .logits_TE = logits_TE.data,
      .weights_TK = weights_TK.data,
      .indices_TK = static_cast<std::int32_t*>(indices_TK.data),
      .losses_2 = losses_2.data,
      .tokens_per_expert_E = tokens_per_expert_E
                                 ? static_cast<std::int32_t*>(tokens_per_expert_E.data)
                                 : buffers.tokens_per_expert_E,
      .partials = buffers.partials};
  cpu::kernels(backend).route_forward(args);
}

void route_backward(ConstTensorView logits_TE, double normalize_p, ConstTensorView indices_TK,
                    ConstTensorView tokens_per_expert_E, ConstTensorView d_weights_TK,
                    ConstTensorView d_losses_2, TensorView d_logits_TE, Backend backend) {
  const char* op = "route_backward";
  check(op, logits_TE, normalize_p, indices_TK);
  const std::int64_t T = logits_TE.shape[0], E = logits_TE.shape[1], K = indices_TK.shape[1];
  const DType dtype = logits_TE.dtype;
  expect_tensor(op, "d_weights_TK", d_weights_TK, {{T, K}, dtype}, logits_TE.device);
  expect_tensor(op, "d_logits_TE", d_logits_TE, {{T, E}, dtype}, logits_TE.device);
  expect_tensor_or_absent(op, "d_losses_2", d_losses_2, {{2}, dtype}, logits_TE.device);
  if (d_losses_2) {
    expect_tensor(op, "tokens_per_expert_E", tokens_per_expert_E, {{E}, DType::kInt32},
                  logits_TE.device);
  }

  const cpu::RouteBackwardArgs args{
      .dtype = dtype,
      .tokens = T,
      .experts = E,
      .top_k = K,
      .normalize_p = normalize_p,
      .logits_TE = logits_TE.data,
      .indices_TK = static_cast<const std::int32_t*>(indices_TK.data),
      .tokens_per_expert_E = static_cast<const std::int32_t*>(tokens_per_expert_E.data),
      .d_weights_TK = d_weights_TK.data,
      .d_losses_2 = d_losses_2.data,
      .d_logits_TE = d_logits_TE.data};
  cpu::kernels(backend).route_backward(args);
}

}  // namespace dropless
