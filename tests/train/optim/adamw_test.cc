// The update against its formula in fp64, and the saved state.
#include "train/optim/adamw.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "dropless/error.h"

namespace dropless::train {
namespace {

AdamWConfig parse(const std::string& text) {
  return AdamWConfig::from_yaml(YamlDocument::parse(text, "t.yaml").root());
}

TEST(DecoupledAdamW, FollowsTheFormula) {
  AdamWConfig config;
  config.lr = 0.1;
  config.weight_decay = 0.03;
  at::manual_seed(1);
  at::Tensor p = at::randn({7, 5}).set_requires_grad(true);
  DecoupledAdamW optimizer(config, {{"p", p}});
  at::Tensor expected = p.detach().to(at::kDouble), m = at::zeros_like(expected),
             v = at::zeros_like(expected);
  const double multipliers[] = {0.25, 1.0, 0.5, 0.0};
  for (int t = 1; t <= 4; ++t) {
    const at::Tensor grad = at::randn({7, 5});
    p.mutable_grad() = grad;
    optimizer.step(multipliers[t - 1]);
    const at::Tensor g = grad.to(at::kDouble);
    const double lr = config.lr * multipliers[t - 1];
    expected = expected * (1 - config.weight_decay * lr / config.lr);
    m = config.beta1 * m + (1 - config.beta1) * g;
    v = config.beta2 * v + (1 - config.beta2) * g * g;
    const at::Tensor m_hat = m / (1 - std::pow(config.beta1, t));
    const at::Tensor v_hat = v / (1 - std::pow(config.beta2, t));
    expected = expected - lr * m_hat / (v_hat.sqrt() + config.eps);
    EXPECT_LT((p.detach().to(at::kDouble) - expected).norm().item<double>() /
                  expected.norm().item<double>(),
              1e-6)
        << "step " << t;
  }
}

TEST(DecoupledAdamW, LeavesParametersWithoutAGradientAlone) {
  at::Tensor used = at::ones({3}).set_requires_grad(true);
  at::Tensor unused = at::ones({3}).set_requires_grad(true);
  DecoupledAdamW optimizer(parse("{name: decoupled_adamw, weight_decay: 0.5}"),
                           {{"used", used}, {"unused", unused}});
  used.mutable_grad() = at::ones({3});
  optimizer.step(1.0);
  EXPECT_TRUE(at::equal(unused.detach(), at::ones({3})));
  EXPECT_FALSE(at::equal(used.detach(), at::ones({3})));
  optimizer.zero_grad();
  EXPECT_FALSE(used.grad().defined());
}

TEST(DecoupledAdamW, ContinuesFromItsStateToTheBit) {
  const auto run = [](bool interrupt) {
    at::manual_seed(3);
    at::Tensor p = at::randn({11}).set_requires_grad(true);
    auto optimizer = std::make_unique<DecoupledAdamW>(
        AdamWConfig{}, std::vector<std::pair<std::string, at::Tensor>>{{"p", p}});
    for (int t = 0; t < 6; ++t) {
      p.mutable_grad() = at::randn({11});
      optimizer->step(1.0);
      if (!interrupt || t != 2) continue;
      const auto saved = optimizer->state();
      auto next = std::make_unique<DecoupledAdamW>(
          AdamWConfig{}, std::vector<std::pair<std::string, at::Tensor>>{{"p", p}});
      const auto state = next->state();
      EXPECT_EQ(state[0].first, "exp_avg/p");
      EXPECT_EQ(state[1].first, "exp_avg_sq/p");
      for (std::size_t i = 0; i < state.size(); ++i) state[i].second.copy_(saved[i].second);
      next->set_steps(optimizer->steps());
      optimizer = std::move(next);
    }
    return p.detach().clone();
  };
  EXPECT_TRUE(at::equal(run(false), run(true)));
}

TEST(AdamWConfig, RefusesNonsenseWithItsPlace) {
  for (const char* text : {"{name: sgd}", "{lr: 0}", "{betas: [0.9]}", "{betas: [0.9, 1.0]}",
                           "{eps: -1}", "{weight_decay: -1}", "{learning_rate: 1}"}) {
    try {
      parse(text);
      FAIL() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      EXPECT_THAT(error.what(), testing::HasSubstr("t.yaml:1:")) << text;
    }
  }
}

}  // namespace
}  // namespace dropless::train
