#include "train/optim/clip.h"

#include <gtest/gtest.h>

#include "dropless/error.h"

namespace dropless::train {
namespace {

std::vector<at::Tensor> parameters_with_gradients() {
  at::manual_seed(2);
  std::vector<at::Tensor> parameters;
  for (const std::int64_t size : {3, 50, 1}) {
    at::Tensor p = at::zeros({size}).set_requires_grad(true);
    p.mutable_grad() = at::randn({size}) * 10;
    parameters.push_back(p);
  }
  parameters.push_back(at::zeros({4}).set_requires_grad(true));  // no gradient
  return parameters;
}

TEST(Clip, GlobalNormIsTheEuclideanNormOfAllGradients) {
  const auto parameters = parameters_with_gradients();
  double sum = 0;
  for (const at::Tensor& p : parameters) {
    if (p.grad().defined()) sum += p.grad().to(at::kDouble).square().sum().item<double>();
  }
  EXPECT_NEAR(global_grad_norm(parameters).item<double>(), std::sqrt(sum), 1e-5 * std::sqrt(sum));
  EXPECT_EQ(global_grad_norm({}).item<double>(), 0.0);
}

TEST(Clip, ScalesLargeNormsDownAndLeavesSmallOnes) {
  const auto parameters = parameters_with_gradients();
  const at::Tensor before = parameters[1].grad().clone();
  clip_gradients({ClipType::kNorm, 1e6}, parameters, global_grad_norm(parameters));
  EXPECT_TRUE(at::equal(parameters[1].grad(), before));
  clip_gradients({ClipType::kNorm, 0.5}, parameters, global_grad_norm(parameters));
  EXPECT_LE(global_grad_norm(parameters).item<double>(), 0.5 * (1 + 1e-6));
  EXPECT_GT(global_grad_norm(parameters).item<double>(), 0.4999);
  // The direction stays.
  EXPECT_NEAR(at::cosine_similarity(parameters[1].grad(), before, 0).item<double>(), 1.0, 1e-6);
}

TEST(Clip, BoundsASpikeOfTenThousandTimes) {
  const auto parameters = parameters_with_gradients();
  const double norm = global_grad_norm(parameters).item<double>();
  for (const at::Tensor& p : parameters) {
    if (p.grad().defined()) p.mutable_grad().mul_(1e4);
  }
  clip_gradients({ClipType::kNorm, norm}, parameters, global_grad_norm(parameters));
  EXPECT_LE(global_grad_norm(parameters).item<double>(), norm * (1 + 1e-6));
  EXPECT_GT(global_grad_norm(parameters).item<double>(), norm * 0.999);
}

TEST(Clip, ByValueClampsEachElement) {
  const auto parameters = parameters_with_gradients();
  clip_gradients({ClipType::kValue, 0.25}, parameters, global_grad_norm(parameters));
  for (const at::Tensor& p : parameters) {
    if (!p.grad().defined()) continue;
    EXPECT_LE(p.grad().abs().max().item<double>(), 0.25);
  }
}

TEST(Clip, AdaptiveBoundsEachRowByItsWeights) {
  const at::Tensor w =
      at::tensor({3.0, 4.0, 0.0, 0.0, 30.0, 40.0}).view({3, 2}).set_requires_grad(true);
  w.mutable_grad() = at::tensor({6.0, 8.0, 6.0, 8.0, 6.0, 8.0}).view({3, 2});
  const at::Tensor bias = at::tensor({0.3, 0.4}).set_requires_grad(true);
  bias.mutable_grad() = at::zeros({2});
  clip_gradients({ClipType::kAdaptive, 0.5}, {w, bias}, at::Tensor());
  // |w| = 5, 0 (taken as 1e-3), 50; |g| = 10 everywhere.
  const at::Tensor expected = at::tensor({1.5, 2.0, 3e-4, 4e-4, 6.0, 8.0}).view({3, 2});
  EXPECT_TRUE(at::allclose(w.grad(), expected, 1e-6)) << w.grad();
  EXPECT_TRUE(at::equal(bias.grad(), at::zeros({2}))) << "no 0 / 0";
}

TEST(ClipConfig, RefusesWhatItDoesNotKnow) {
  for (const char* text :
       {"{clipping_type: agc, clipping_threshold: 1}",
        "{clipping_type: norm, clipping_threshold: 0}", "{clipping_type: norm}"}) {
    EXPECT_THROW(ClipConfig::from_yaml(YamlDocument::parse(text, "t.yaml").root()), Error) << text;
  }
}

}  // namespace
}  // namespace dropless::train
