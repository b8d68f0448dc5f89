#include "train/nn/linear.h"

#include <vector>

#include "train/bridge/few_rows.h"
#include "train/nn/precision.h"

namespace dropless::train {

at::Tensor linear_layer(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  // Before x is cast, which at::linear does again.
  if (!few_rows_may_pay(x.numel() / weight.size(1), weight)) return at::linear(x, weight, bias);
  const at::Tensor rows_RK = to_compute_dtype(x).reshape({-1, weight.size(1)}).contiguous();
  if (rows_RK.scalar_type() != weight.scalar_type()) return at::linear(x, weight, bias);
  std::vector<std::int64_t> shape = x.sizes().vec();
  shape.back() = weight.size(0);
  return few_rows_product(rows_RK, weight, bias).view(shape);
}

}  // namespace dropless::train
