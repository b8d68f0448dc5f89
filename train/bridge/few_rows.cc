#include "train/bridge/few_rows.h"

#include "dropless/grouped_gemm.h"
#include "train/bridge/views.h"

namespace dropless::train {
namespace {

constexpr std::int64_t kFewRows = 8;  // as in src/cpu/simd/few_rows.h
// What a call costs counts for smaller ones.
constexpr std::int64_t kLargeBytes = 1 << 20;

}  // namespace

bool few_rows_may_pay(std::int64_t rows, const at::Tensor& weight_NK) {
  return !at::GradMode::is_enabled() && weight_NK.is_cpu() && rows <= kFewRows &&
         weight_NK.is_contiguous() && static_cast<std::int64_t>(weight_NK.nbytes()) >= kLargeBytes;
}

at::Tensor few_rows_product(const at::Tensor& rows_RK, const at::Tensor& weight_NK) {
  const std::int64_t R = rows_RK.size(0);
  const at::Tensor offsets_2 = at::zeros({2}, at::kLong);
  offsets_2.mutable_data_ptr<std::int64_t>()[1] = R;
  const at::Tensor out_RN = at::empty({R, weight_NK.size(0)}, rows_RK.options());
  // Kept: a megabyte for each of many threads would be mapped and unmapped by every call.
  static thread_local at::Tensor workspace;
  const auto bytes = static_cast<std::int64_t>(grouped_gemm_workspace_bytes());
  if (!workspace.defined() || workspace.numel() < bytes) workspace = at::empty({bytes}, at::kByte);
  grouped_gemm(view_of(rows_RK), view_of(weight_NK.unsqueeze(0)), /*transpose_b=*/true,
               view_of(offsets_2), view_of(out_RN), workspace.mutable_data_ptr(),
               static_cast<std::size_t>(workspace.numel()));
  return out_RN;
}

}  // namespace dropless::train
