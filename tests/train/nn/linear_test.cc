// The linear layer: what at::linear gives, for few rows and many, with and without autocast.
#include "train/nn/linear.h"

#include <gtest/gtest.h>

#include <vector>

#include "train/bridge/device.h"
#include "train/bridge/few_rows.h"
#include "train/nn/precision.h"

namespace dropless::train {
namespace {

double relative_error(const at::Tensor& a, const at::Tensor& b) {
  return ((a.to(at::kDouble) - b.to(at::kDouble)).norm() / b.to(at::kDouble).norm()).item<double>();
}

struct Case {
  at::Device device;
  Precision precision;
  std::int64_t columns;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Precision precision : {Precision::kFp32, Precision::kAmpBf16, Precision::kAmpFp16}) {
    all.push_back({at::kCPU, precision, 1100});
    if (!cuda_available()) continue;
    all.push_back({choose_device("cuda"), precision, 1096});
    all.push_back({choose_device("cuda"), precision, 1100});
  }
  return all;
}

TEST(LinearLayer, EqualsTorchs) {
  at::manual_seed(1);
  const at::NoGradGuard no_grad;
  for (const auto& [device, precision, columns] : cases()) {
    const AutocastGuard autocast(precision, device);
    const at::ScalarType type = compute_type(precision);
    const at::Tensor weight = at::randn({700, columns}).to(device, type);
    const at::Tensor bias = at::randn({700}).to(device);
    const bool has_kernel = device.is_cpu() || (type != at::kFloat && columns % 8 == 0);
    for (const std::int64_t rows : {0, 1, 2, 7, 8, 9}) {
      const at::Tensor x = at::randn({rows, 1, columns}).to(device);
      ASSERT_EQ(few_rows_may_pay(rows, weight), rows <= 8 && has_kernel);
      for (const at::Tensor& b : {at::Tensor(), bias}) {
        const at::Tensor exact = at::linear(x.to(type).to(at::kDouble), weight.to(at::kDouble),
                                            b.defined() ? b.to(type).to(at::kDouble) : b);
        const at::Tensor out = linear_layer(x, weight, b);
        EXPECT_EQ(out.sizes(), exact.sizes());
        EXPECT_EQ(out.scalar_type(), type);
        if (rows == 0) continue;
        EXPECT_LT(relative_error(out, exact), type == at::kFloat ? 1e-6 : 5e-3) << rows;
      }
    }
  }
}

TEST(LinearLayer, KeepsGradientsAndSmallWeightsWithTorch) {
  const at::Tensor weight = at::randn({700, 1100});
  EXPECT_FALSE(few_rows_may_pay(1, weight));  // gradients are on
  const at::NoGradGuard no_grad;
  EXPECT_TRUE(few_rows_may_pay(1, weight));
  EXPECT_FALSE(few_rows_may_pay(1, weight.slice(0, 0, 20)));
  EXPECT_FALSE(few_rows_may_pay(1, weight.t().contiguous().t()));
  // Not of one type: libtorch says so.
  EXPECT_THROW(linear_layer(at::randn({1, 1100}).to(at::kDouble), weight), c10::Error);
}

}  // namespace
}  // namespace dropless::train
