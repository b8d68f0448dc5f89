#include "train/bridge/few_rows.h"

#include <cstdint>

#include "dropless/decode.h"
#include "dropless/grouped_gemm.h"
#include "train/bridge/device.h"
#include "train/bridge/views.h"

namespace dropless::train {
namespace {

constexpr std::int64_t kFewRows = 8;  // as in src/cpu/simd/few_rows.h
static_assert(kFewRows == kDecodeMostRows);
// What a call costs counts for smaller ones.
constexpr std::int64_t kLargeBytes = 1 << 20;

bool is_aligned(const at::Tensor& tensor) {
  return reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

bool pays_on_gpu(std::int64_t rows, const at::Tensor& weight_NK) {
  const at::ScalarType type = weight_NK.scalar_type();
  const Device device = device_of(weight_NK.device());
  const std::int64_t N = weight_NK.size(0), K = weight_NK.size(1);
  return (type == at::kBFloat16 || type == at::kHalf) && K % 8 == 0 && K <= kDecodeMostInputs &&
         N <= kDecodeMostColumns && is_aligned(weight_NK) &&
         decode_unsupported(dtype_of(type), device).empty() && decode_product_pays(rows, K, device);
}

at::Tensor product_on_cpu(const at::Tensor& rows_RK, const at::Tensor& weight_NK) {
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

}  // namespace

bool few_rows_may_pay(std::int64_t rows, const at::Tensor& weight_NK) {
  if (at::GradMode::is_enabled() || rows > kFewRows || !weight_NK.is_contiguous()) return false;
  if (weight_NK.is_cuda()) return pays_on_gpu(rows, weight_NK);
  return weight_NK.is_cpu() && static_cast<std::int64_t>(weight_NK.nbytes()) >= kLargeBytes;
}

at::Tensor few_rows_product(const at::Tensor& rows_RK, const at::Tensor& weight_NK,
                            const at::Tensor& bias_N) {
  if (rows_RK.is_cpu()) {
    const at::Tensor out_RN = product_on_cpu(rows_RK, weight_NK);
    return bias_N.defined() ? out_RN + bias_N.to(out_RN.scalar_type()) : out_RN;
  }
  // As the model holds it; another type costs a kernel.
  const at::Tensor bias = bias_N.defined() ? bias_N.to(at::kFloat) : bias_N;
  const at::Tensor out_RN = at::empty({rows_RK.size(0), weight_NK.size(0)}, rows_RK.options());
  const at::Tensor rows = is_aligned(rows_RK) ? rows_RK : rows_RK.clone();
  decode_product(view_of(rows), view_of(weight_NK), view_of(bias), view_of(out_RN),
                 current_stream(rows_RK.device()));
  return out_RN;
}

}  // namespace dropless::train
