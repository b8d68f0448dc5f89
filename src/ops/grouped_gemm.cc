// grouped_gemm.h: checks, then the CPU kernel.
#include "dropless/grouped_gemm.h"

#include "src/common/check.h"
#include "src/cpu/kernels.h"
#include "src/ops/expect.h"

namespace dropless {
namespace {

std::int64_t check_offsets(const char* op, const ConstTensorView& offsets_E1, std::int64_t rows,
                           Device device) {
  const std::int64_t groups = expect_group_offsets(op, offsets_E1);
  DROPLESS_CHECK(offsets_E1.device == device, concat(op, ": offsets_E1 is on another device"));
  expect_offsets(op, offsets_E1, rows);
  return groups;
}

}  // namespace

std::size_t grouped_gemm_workspace_bytes() { return cpu::max_threads() * cpu::kGemmSlotBytes; }

void grouped_gemm(ConstTensorView a_RK, ConstTensorView b_EKN, bool transpose_b,
                  ConstTensorView offsets_E1, TensorView out_RN, void* workspace,
                  std::size_t workspace_bytes, Backend backend) {
  const char* op = "grouped_gemm";
  expect_floating(op, "a_RK", a_RK, 2);
  expect_cpu(op, a_RK);
  const std::int64_t R = a_RK.shape[0], K = a_RK.shape[1];
  expect_tensor(op, "a_RK", a_RK, {{R, K}, a_RK.dtype}, a_RK.device);
  const std::int64_t E = check_offsets(op, offsets_E1, R, a_RK.device);
  DROPLESS_CHECK(b_EKN.rank == 3,
                 concat(op, ": b is ", describe(b_EKN), ", expected 3 dimensions"));
  const std::int64_t N = b_EKN.shape[transpose_b ? 1 : 2];
  if (transpose_b) {
    expect_tensor(op, "b_ENK", b_EKN, {{E, N, K}, a_RK.dtype}, a_RK.device);
  } else {
    expect_tensor(op, "b_EKN", b_EKN, {{E, K, N}, a_RK.dtype}, a_RK.device);
  }
  expect_tensor(op, "out_RN", out_RN, {{R, N}, a_RK.dtype}, a_RK.device);
  expect_workspace(op, workspace, workspace_bytes, cpu::kGemmSlotBytes);

  cpu::GroupedGemmArgs args{.groups = E,
                            .n = N,
                            .k = K,
                            .offsets = static_cast<const std::int64_t*>(offsets_E1.data),
                            .transpose_b = transpose_b,
                            .num_terms = 1,
                            .terms = {},
                            .out = out_RN.data,
                            .out_dtype = out_RN.dtype,
                            .workspace = workspace,
                            .workspace_bytes = workspace_bytes};
  args.terms[0] = {.a = a_RK.data, .a_dtype = a_RK.dtype, .b = b_EKN.data, .b_dtype = b_EKN.dtype};
  cpu::kernels(backend).grouped_gemm(args);
}

void grouped_gemm_weight_grad(ConstTensorView a_RM, ConstTensorView b_RN,
                              ConstTensorView offsets_E1, TensorView out_EMN, void* workspace,
                              std::size_t workspace_bytes, Backend backend) {
  const char* op = "grouped_gemm_weight_grad";
  expect_floating(op, "a_RM", a_RM, 2);
  expect_cpu(op, a_RM);
  const std::int64_t R = a_RM.shape[0], M = a_RM.shape[1];
  expect_tensor(op, "a_RM", a_RM, {{R, M}, a_RM.dtype}, a_RM.device);
  const std::int64_t E = check_offsets(op, offsets_E1, R, a_RM.device);
  DROPLESS_CHECK(b_RN.rank == 2,
                 concat(op, ": b_RN is ", describe(b_RN), ", expected 2 dimensions"));
  const std::int64_t N = b_RN.shape[1];
  expect_tensor(op, "b_RN", b_RN, {{R, N}, a_RM.dtype}, a_RM.device);
  expect_tensor(op, "out_EMN", out_EMN, {{E, M, N}, a_RM.dtype}, a_RM.device);
  expect_workspace(op, workspace, workspace_bytes, cpu::kGemmSlotBytes);

  const cpu::GroupedGemmWeightGradArgs args{
      .groups = E,
      .m = M,
      .n = N,
      .offsets = static_cast<const std::int64_t*>(offsets_E1.data),
      .a = a_RM.data,
      .a_dtype = a_RM.dtype,
      .b = b_RN.data,
      .b_dtype = b_RN.dtype,
      .b_rows = nullptr,
      .out = out_EMN.data,
      .out_dtype = out_EMN.dtype,
      .workspace = workspace,
      .workspace_bytes = workspace_bytes};
  cpu::kernels(backend).grouped_gemm_weight_grad(args);
}

}  // namespace dropless
