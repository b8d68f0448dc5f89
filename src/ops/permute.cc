// permute.h: checks, then the CPU kernel.
#include "dropless/permute.h"

#include <cmath>
#include <limits>

#include "src/common/check.h"
#include "src/common/dispatch.h"
#include "src/common/workspace.h"
#include "src/cpu/kernels.h"
#include "src/ops/expect.h"

namespace dropless {
namespace {

// Checks x_TD, rows_TK and y_RD of a gather or combine, whichever direction.
struct Permutation {
  DType dtype;
  std::int64_t tokens, top_k, width;
  const std::int32_t* rows_TK;
  std::int64_t rows;
  std::int64_t zero_rows;  // all, where no (t, k) names some
};

Permutation check(const char* op, const char* tokens_name, const ConstTensorView& x_TD,
                  const char* routed_name, const ConstTensorView& y_RD,
                  const ConstTensorView& rows_TK) {
  expect_floating(op, tokens_name, x_TD, 2);
  expect_cpu(op, x_TD);
  const std::int64_t T = x_TD.shape[0], D = x_TD.shape[1];
  DROPLESS_CHECK(rows_TK.rank == 2,
                 concat(op, ": rows_TK is ", describe(rows_TK), ", expected [T, K]"));
  const std::int64_t K = rows_TK.shape[1];
  expect_row_count(op, T, K);
  expect_tensor(op, tokens_name, x_TD, {{T, D}, x_TD.dtype}, x_TD.device);
  expect_tensor(op, "rows_TK", rows_TK, {{T, K}, DType::kInt32}, x_TD.device);
  DROPLESS_CHECK(y_RD.rank == 2 && y_RD.shape[0] >= 0,
                 concat(op, ": ", routed_name, " is ", describe(y_RD), ", expected [R, ", D, "]"));
  const std::int64_t R = y_RD.shape[0];
  expect_tensor(op, routed_name, y_RD, {{R, D}, x_TD.dtype}, x_TD.device);
  const auto* rows = static_cast<const std::int32_t*>(rows_TK.data);
  std::int64_t named = 0;
  for (std::int64_t i = 0; i < T * K; ++i) {
    DROPLESS_CHECK(rows[i] >= -1 && rows[i] < R,
                   concat(op, ": rows_TK[", i / K, ", ", i % K, "] is ", rows[i], ", but ",
                          routed_name, " has ", R, " rows"),
                   "rows lie between 0 and R - 1; -1 stands for a dropped one");
    named += rows[i] >= 0;
  }
  return {x_TD.dtype, T, K, D, rows, R, named < R ? R : 0};
}

// What both kinds of slots are made of.
cpu::AssignSlotsArgs check_slots(const char* op, const ConstTensorView& indices_TK,
                                 const ConstTensorView& rows_TK, const ConstTensorView& offsets_E1,
                                 const TensorView& slots_TK) {
  expect_cpu(op, indices_TK);
  DROPLESS_CHECK(indices_TK.rank == 2,
                 concat(op, ": indices_TK is ", describe(indices_TK), ", expected [T, K]"));
  const std::int64_t T = indices_TK.shape[0], K = indices_TK.shape[1];
  expect_row_count(op, T, K);
  const Expected numbers{{T, K}, DType::kInt32};
  expect_tensor(op, "indices_TK", indices_TK, numbers, Device{});
  expect_tensor(op, "rows_TK", rows_TK, numbers, Device{});
  expect_tensor(op, "slots_TK", slots_TK, numbers, Device{});
  expect_cpu(op, offsets_E1);
  const std::int64_t E = expect_group_offsets(op, offsets_E1);
  const auto* offsets = static_cast<const std::int64_t*>(offsets_E1.data);
  expect_offsets(op, offsets_E1, offsets[E]);
  expect_indices(op, "indices_TK", indices_TK, E);
  const auto* indices = static_cast<const std::int32_t*>(indices_TK.data);
  const auto* rows = static_cast<const std::int32_t*>(rows_TK.data);
  for (std::int64_t i = 0; i < T * K; ++i) {
    const std::int64_t e = indices[i];
    DROPLESS_CHECK(rows[i] == -1 || (rows[i] >= offsets[e] && rows[i] < offsets[e + 1]),
                   concat(op, ": rows_TK[", i / K, ", ", i % K, "] is ", rows[i], ", but expert ",
                          e, " has the rows ", offsets[e], " to ", offsets[e + 1]),
                   "pass what dispatch_order wrote for these indices");
  }
  return {.entries = T * K,
          .indices_TK = indices,
          .rows_TK = rows,
          .offsets_E1 = offsets,
          .slot_offsets_E1 = nullptr,
          .capacity = 0,
          .slots_TK = static_cast<std::int32_t*>(slots_TK.data)};
}

void run_combine(const Permutation& p, const void* y_RD, const void* weights_TK, void* out_TD,
                 Backend backend) {
  const cpu::CombineArgs args{.dtype = p.dtype,
                              .tokens = p.tokens,
                              .top_k = p.top_k,
                              .width = p.width,
                              .y_RD = y_RD,
                              .weights_TK = weights_TK,
                              .rows_TK = p.rows_TK,
                              .base_TD = nullptr,
                              .out_TD = out_TD};
  cpu::kernels(backend).combine(args);
}

}  // namespace

std::size_t dispatch_order_workspace_bytes(std::int64_t num_tokens, std::int64_t num_experts) {
  const char* op = "dispatch_order_workspace_bytes";
  expect_bytes(op, "the tokens", {num_tokens});
  expect_bytes(op, "the workspace", {cpu::kMaxTokenChunks, num_experts});
  WorkspaceCarver carver;
  carver.take<std::int32_t>(cpu::kMaxTokenChunks * num_experts);
  return carver.used();
}

void dispatch_order(ConstTensorView indices_TK, TensorView rows_TK, TensorView offsets_E1,
                    TensorView tokens_R, void* workspace, std::size_t workspace_bytes,
                    Backend backend, std::int64_t capacity) {
  const char* op = "dispatch_order";
  expect_cpu(op, indices_TK);
  DROPLESS_CHECK(indices_TK.rank == 2,
                 concat(op, ": indices_TK is ", describe(indices_TK), ", expected [T, K]"));
  const std::int64_t E = expect_group_offsets(op, offsets_E1);
  const std::int64_t T = indices_TK.shape[0], K = indices_TK.shape[1];
  expect_row_count(op, T, K);
  expect_tensor(op, "indices_TK", indices_TK, {{T, K}, DType::kInt32}, indices_TK.device);
  expect_tensor(op, "rows_TK", rows_TK, {{T, K}, DType::kInt32}, indices_TK.device);
  expect_tensor(op, "offsets_E1", offsets_E1, {{E + 1}, DType::kInt64}, indices_TK.device);
  expect_tensor_or_absent(op, "tokens_R", tokens_R, {{T * K}, DType::kInt32}, indices_TK.device);
  expect_workspace(op, workspace, workspace_bytes, dispatch_order_workspace_bytes(T, E));
  expect_indices(op, "indices_TK", indices_TK, E);
  const auto* indices = static_cast<const std::int32_t*>(indices_TK.data);
  WorkspaceCarver carver(workspace, workspace_bytes);
  const cpu::DispatchOrderArgs args{.tokens = T,
                                    .experts = E,
                                    .top_k = K,
                                    .indices_TK = indices,
                                    .rows_TK = static_cast<std::int32_t*>(rows_TK.data),
                                    .offsets_E1 = static_cast<std::int64_t*>(offsets_E1.data),
                                    .tokens_R = static_cast<std::int32_t*>(tokens_R.data),
                                    .partials = carver.take<std::int32_t>(cpu::kMaxTokenChunks * E),
                                    .capacity = capacity};
  cpu::kernels(backend).dispatch_order(args);
}

std::int64_t expert_capacity(double factor, std::int64_t num_tokens, std::int64_t top_k,
                             std::int64_t num_experts) {
  const char* op = "expert_capacity";
  DROPLESS_CHECK(factor >= 0 && std::isfinite(factor), concat(op, ": the factor is ", factor),
                 "use 0 (no limit) or a finite factor > 0");
  DROPLESS_CHECK(
      num_tokens >= 0 && top_k >= 1 && num_experts >= 1,
      concat(op, ": ", num_tokens, " tokens, top_k ", top_k, ", ", num_experts, " experts"));
  expect_row_count(op, num_tokens, top_k);
  if (factor == 0) return -1;
  const double capacity =
      factor * (static_cast<double>(top_k * num_tokens) / static_cast<double>(num_experts));
  // No expert gets more rows than there are.
  return capacity < static_cast<double>(top_k * num_tokens) ? static_cast<std::int64_t>(capacity)
                                                            : top_k * num_tokens;
}

void padded_slots(ConstTensorView indices_TK, ConstTensorView rows_TK, ConstTensorView offsets_E1,
                  ConstTensorView padded_E1, TensorView slots_TK, Backend backend) {
  const char* op = "padded_slots";
  cpu::AssignSlotsArgs args = check_slots(op, indices_TK, rows_TK, offsets_E1, slots_TK);
  const std::int64_t E = offsets_E1.shape[0] - 1;
  expect_tensor(op, "padded_E1", padded_E1, {{E + 1}, DType::kInt64}, Device{});
  args.slot_offsets_E1 = static_cast<const std::int64_t*>(padded_E1.data);
  DROPLESS_CHECK(args.slot_offsets_E1[E] <= std::numeric_limits<std::int32_t>::max(),
                 concat(op, ": the ", args.slot_offsets_E1[E], " slots reach 2^31"),
                 "split the batch");
  expect_offsets(op, padded_E1, args.slot_offsets_E1[E]);
  cpu::kernels(backend).assign_slots(args);
}

void binned_slots(ConstTensorView indices_TK, ConstTensorView rows_TK, ConstTensorView offsets_E1,
                  std::int64_t capacity, TensorView slots_TK, Backend backend) {
  const char* op = "binned_slots";
  cpu::AssignSlotsArgs args = check_slots(op, indices_TK, rows_TK, offsets_E1, slots_TK);
  const std::int64_t E = offsets_E1.shape[0] - 1;
  DROPLESS_CHECK(capacity >= 0 && capacity <= std::numeric_limits<std::int32_t>::max() / E,
                 concat(op, ": ", E, " experts of capacity ", capacity,
                        ", expected at least 0 and fewer than 2^31 slots"));
  args.capacity = capacity;
  cpu::kernels(backend).assign_slots(args);
}

void gather(ConstTensorView x_TD, ConstTensorView rows_TK, TensorView x_RD, Backend backend) {
  const Permutation p = check("gather", "x_TD", x_TD, "x_RD", x_RD, rows_TK);
  const cpu::GatherArgs args{.dtype = p.dtype,
                             .tokens = p.tokens,
                             .top_k = p.top_k,
                             .width = p.width,
                             .x_TD = x_TD.data,
                             .rows_TK = p.rows_TK,
                             .x_RD = x_RD.data,
                             .zero_rows = p.zero_rows};
  cpu::kernels(backend).gather(args);
}

void gather_backward(ConstTensorView d_x_RD, ConstTensorView rows_TK, TensorView d_x_TD,
                     Backend backend) {
  const Permutation p = check("gather_backward", "d_x_TD", d_x_TD, "d_x_RD", d_x_RD, rows_TK);
  run_combine(p, d_x_RD.data, nullptr, d_x_TD.data, backend);
}

void combine(ConstTensorView y_RD, ConstTensorView weights_TK, ConstTensorView rows_TK,
             TensorView out_TD, Backend backend) {
  const Permutation p = check("combine", "out_TD", out_TD, "y_RD", y_RD, rows_TK);
  expect_tensor("combine", "weights_TK", weights_TK,
                {{p.tokens, p.top_k}, accumulator_dtype(p.dtype)}, out_TD.device);
  run_combine(p, y_RD.data, weights_TK.data, out_TD.data, backend);
}

void combine_backward(ConstTensorView y_RD, ConstTensorView weights_TK, ConstTensorView rows_TK,
                      ConstTensorView d_out_TD, TensorView d_y_RD, TensorView d_weights_TK,
                      Backend backend) {
  const char* op = "combine_backward";
  const Permutation p = check(op, "d_out_TD", d_out_TD, "y_RD", y_RD, rows_TK);
  const DType sums = accumulator_dtype(p.dtype);
  expect_tensor(op, "weights_TK", weights_TK, {{p.tokens, p.top_k}, sums}, d_out_TD.device);
  expect_tensor(op, "d_y_RD", d_y_RD, {{p.rows, p.width}, p.dtype}, d_out_TD.device);
  expect_tensor(op, "d_weights_TK", d_weights_TK, {{p.tokens, p.top_k}, sums}, d_out_TD.device);
  const cpu::CombineBackwardArgs args{.dtype = p.dtype,
                                      .tokens = p.tokens,
                                      .top_k = p.top_k,
                                      .width = p.width,
                                      .y_RD = y_RD.data,
                                      .weights_TK = weights_TK.data,
                                      .rows_TK = p.rows_TK,
                                      .d_out_TD = d_out_TD.data,
                                      .d_y_RD = d_y_RD.data,
                                      .d_weights_TK = d_weights_TK.data,
                                      .zero_rows = p.zero_rows};
  cpu::kernels(backend).combine_backward(args);
}

}  // namespace dropless
