#include "train/bridge/few_rows.h"

#include "dropless/grouped_gemm.h"
#include "train/bridge/views.h"

namespace dropless::train {
namespace {

constexpr std::int64_t kFewRows = 8;
// What a call costs counts for smaller ones.
constexpr std::int64_t kLargeBytes = 1 << 20;

}  // namespace

bool few_rows_pay(const at::Tensor& rows_RK, const at::Tensor& weight_NK) {
  return !at::GradMode::is_enabled() && rows_RK.is_cpu() && rows_RK.size(0) <= kFewRows &&
         rows_RK.scalar_type() == weight_NK.scalar_type() && weight_NK.is_contiguous() &&
         static_cast<std::int64_t>(weight_NK.nbytes()) >= kLargeBytes;
}

at::Tensor few_rows_product(const at::Tensor& rows_RK, const at::Tensor& weight_NK) {
  const std::int64_t R = rows_RK.size(0);
  const at::Tensor offsets_2 = at::zeros({2}, at::kLong);
  offsets_2.mutable_data_ptr<std::int64_t>()[1] = R;
  const at::Tensor out_RN = at::empty({R, weight_NK.size(0)}, rows_RK.options());
  const at::Tensor workspace =
      at::empty({static_cast<std::int64_t>(grouped_gemm_workspace_bytes())}, at::kByte);
  grouped_gemm(view_of(rows_RK), view_of(weight_NK.unsqueeze(0)), /*transpose_b=*/true,
               view_of(offsets_2), view_of(out_RN), workspace.mutable_data_ptr(),
               static_cast<std::size_t>(workspace.numel()));
  return out_RN;
}

}  // namespace dropless::train
