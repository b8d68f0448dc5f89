// Each optimizer's update against its formula in fp64, its memory, and how parameters are grouped.
#include "train/optim/optimizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "dropless/error.h"
#include "train/optim/lion.h"

namespace dropless::train {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

OptimizerConfig parse(const std::string& text) {
  return OptimizerConfig::from_yaml(YamlDocument::parse(text, "t.yaml").root());
}

at::Tensor leaf(at::Tensor value) { return value.set_requires_grad(true); }

std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
    return std::string(error.what()) + " | " + error.hint();
  }
  return "nothing";
}

// What a formula remembers: fp64 tensors, created as zeros.
using Formula = std::function<void(at::Tensor& p, const at::Tensor& g, std::vector<at::Tensor>& m,
                                   double multiplier, int t)>;

// Runs the optimizer of `text` beside the formula on random gradients.
void expect_follows(const std::string& text, const Formula& formula) {
  at::manual_seed(1);
  const at::Tensor p = leaf(at::randn({7, 5}));
  const auto optimizer = make_optimizer(parse(text), {{"p", p}});
  at::Tensor expected = p.detach().to(at::kDouble);
  std::vector<at::Tensor> memory(2, at::Tensor());
  for (at::Tensor& m : memory) m = at::zeros_like(expected);
  const double multipliers[] = {0.25, 1.0, 0.5, 0.0, 0.75};
  for (int t = 1; t <= 5; ++t) {
    const at::Tensor grad = at::randn({7, 5});
    p.mutable_grad() = grad;
    optimizer->step(multipliers[t - 1]);
    formula(expected, grad.to(at::kDouble), memory, multipliers[t - 1], t);
    EXPECT_LT((p.detach().to(at::kDouble) - expected).norm().item<double>() /
                  expected.norm().item<double>(),
              1e-6)
        << text << " step " << t;
  }
}

Formula adam(double lr, double b1, double b2, double eps, double wd, bool decoupled) {
  return [=](at::Tensor& p, const at::Tensor& g, std::vector<at::Tensor>& m, double multiplier,
             int t) {
    p = p * (1 - wd * multiplier * (decoupled ? 1 : lr));
    m[0] = b1 * m[0] + (1 - b1) * g;
    m[1] = b2 * m[1] + (1 - b2) * g * g;
    const at::Tensor m_hat = m[0] / (1 - std::pow(b1, t)), v_hat = m[1] / (1 - std::pow(b2, t));
    p = p - lr * multiplier * m_hat / (v_hat.sqrt() + eps);
  };
}

TEST(Optimizer, AdamWFollowsItsFormula) {
  expect_follows("{name: decoupled_adamw, lr: 0.1, weight_decay: 0.03}",
                 adam(0.1, 0.9, 0.95, 1e-8, 0.03, true));
  expect_follows("{name: adamw, lr: 0.1, weight_decay: 0.3, eps: 1e-3}",
                 adam(0.1, 0.9, 0.999, 1e-3, 0.3, false));
}

TEST(Optimizer, LionFollowsItsFormula) {
  const auto lion = [](at::Tensor& p, const at::Tensor& g, std::vector<at::Tensor>& m,
                       double multiplier, int) {
    p = p * (1 - 5e-4 * multiplier);
    p = p - 0.01 * multiplier * (0.8 * m[0] + 0.2 * g).sign();
    m[0] = 0.9 * m[0] + 0.1 * g;
  };
  for (const char* name : {"decoupled_lionw", "clip_lion", "adalr_lion"}) {
    expect_follows(
        std::string("{name: ") + name + ", lr: 0.01, betas: [0.8, 0.9], weight_decay: 5e-4}", lion);
  }
}

TEST(Optimizer, SgdFollowsItsFormula) {
  expect_follows("{name: sgd, lr: 0.1, weight_decay: 0.2}",
                 [](at::Tensor& p, const at::Tensor& g, std::vector<at::Tensor>&, double multiplier,
                    int) { p = p - 0.1 * multiplier * (g + 0.2 * p); });
  expect_follows(
      "{name: sgd, lr: 0.1, momentum: 0.9, dampening: 0.3}",
      [](at::Tensor& p, const at::Tensor& g, std::vector<at::Tensor>& m, double multiplier, int t) {
        m[0] = t == 1 ? g : 0.9 * m[0] + 0.7 * g;
        p = p - 0.1 * multiplier * m[0];
      });
  expect_follows(
      "{name: sgd, lr: 0.1, momentum: 0.9, nesterov: true}",
      [](at::Tensor& p, const at::Tensor& g, std::vector<at::Tensor>& m, double multiplier, int) {
        m[0] = 0.9 * m[0] + g;
        p = p - 0.1 * multiplier * (g + 0.9 * m[0]);
      });
}

TEST(Optimizer, NoOpChangesNothing) {
  expect_follows("{name: no_op}",
                 [](at::Tensor&, const at::Tensor&, std::vector<at::Tensor>&, double, int) {});
}

TEST(OutlierWindow, ComparesWithTheMeanOfOlderObservations) {
  OutlierWindow window;
  for (int i = 0; i < 500; ++i) window.add(1.0);
  EXPECT_EQ(window.bound(5), HUGE_VAL) << "nothing is old enough";
  for (int i = 0; i < 250; ++i) window.add(9.0);
  EXPECT_DOUBLE_EQ(window.bound(5), 5.0) << "the last 500 do not count";
  for (int i = 0; i < 500; ++i) window.add(9.0);
  EXPECT_DOUBLE_EQ(window.bound(5), 5.0 * (250 + 250 * 9.0) / 500);
  EXPECT_EQ(window.recent.size() + window.delayed.size(), 1000u);
}

// A gradient a hundred times too large, after 501 steps with gradients of norm 1.
double step_of_an_outlier(const std::string& text, int steps_after) {
  const at::Tensor p = leaf(at::zeros({4}));
  const auto optimizer = make_optimizer(parse(text), {{"p", p}});
  for (int t = 0; t < 501; ++t) {
    p.mutable_grad() = at::full({4}, 0.5);
    optimizer->step(1.0);
  }
  p.mutable_grad() = at::full({4}, 50.0);
  optimizer->step(1.0);
  for (int t = 0; t < steps_after; ++t) {
    p.mutable_grad() = at::full({4}, 0.5);
    optimizer->step(1.0);
  }
  if (text.find("clip_lion") != std::string::npos) {
    return optimizer->state()[0].second[0].item<double>();  // the momentum took the clipped one
  }
  const double before = p[0].item<double>();
  p.mutable_grad() = at::full({4}, 0.5);
  optimizer->step(1.0);
  return before - p[0].item<double>();
}

TEST(Optimizer, ClipLionScalesAnOutlierToItsBound) {
  // Bound 3 for the norm, so 1.5 an element: 0.5 (momentum) * 0.5 + 0.5 * 1.5.
  EXPECT_NEAR(step_of_an_outlier("{name: clip_lion, betas: [0, 0.5], outlier_threshold: 3}", 0),
              1.0, 1e-6);
}

TEST(Optimizer, AdaLrLionLowersTheRateForAWhile) {
  const std::string text =
      "{name: adalr_lion, lr: 1, betas: [0, 0], outlier_threshold: 3, timeout: 5, lr_penalty: 0.5}";
  EXPECT_NEAR(step_of_an_outlier(text, 0), 0.5, 1e-5);
  EXPECT_NEAR(step_of_an_outlier(text, 4), 0.5, 1e-5);
  EXPECT_NEAR(step_of_an_outlier(text, 5), 1.0, 1e-5);
}

TEST(Optimizer, LeavesParametersWithoutAGradientAlone) {
  const at::Tensor used = leaf(at::ones({3})), unused = leaf(at::ones({3}));
  const auto optimizer = make_optimizer(parse("{name: decoupled_adamw, weight_decay: 0.5}"),
                                        {{"used", used}, {"unused", unused}});
  used.mutable_grad() = at::ones({3});
  optimizer->step(1.0);
  EXPECT_TRUE(at::equal(unused.detach(), at::ones({3})));
  EXPECT_FALSE(at::equal(used.detach(), at::ones({3})));
  optimizer->zero_grad();
  EXPECT_FALSE(used.grad().defined());
}

TEST(Optimizer, ContinuesFromItsStateToTheBit) {
  for (const char* text :
       {"{name: decoupled_adamw}", "{name: decoupled_lionw}",
        "{name: clip_lion, outlier_threshold: 0.5}", "{name: adalr_lion, outlier_threshold: 0.5}",
        "{name: sgd, momentum: 0.9, dampening: 0.5}"}) {
    const auto run = [&](bool interrupt) {
      at::manual_seed(3);
      const at::Tensor p = leaf(at::randn({11}));
      auto optimizer = make_optimizer(parse(text), {{"p", p}});
      for (int t = 0; t < 520; ++t) {
        p.mutable_grad() = at::randn({11});
        optimizer->step(1.0);
        if (!interrupt || t != 510) continue;
        auto next = make_optimizer(parse(text), {{"p", p}});
        const auto saved = optimizer->state(), state = next->state();
        for (std::size_t i = 0; i < state.size(); ++i) {
          EXPECT_EQ(state[i].first, saved[i].first);
          state[i].second.copy_(saved[i].second);
        }
        next->set_steps(optimizer->steps());
        next->reload(nlohmann::json::parse(optimizer->record().dump()));
        optimizer = std::move(next);
      }
      return p.detach().clone();
    };
    EXPECT_TRUE(at::equal(run(false), run(true))) << text;
  }
}

TEST(Optimizer, GroupsHaveTheirOwnSettings) {
  const OptimizerConfig config = parse(
      "{name: decoupled_lionw, lr: 0.1, disable_grad: wte, param_groups: ["
      "{param_str_match: '^model.*norm', lr: 0.01}, {param_str_match: norm|bias, lr: 1}]}");
  const std::vector<std::string> names = {"a.norm.weight", "a.norm.bias", "b.bias", "b.weight",
                                          "wte.weight"};
  EXPECT_THAT(config.assign_groups(names), ElementsAre(1, 1, 2, 0, -1));
  NamedParameters parameters;
  for (const std::string& name : names) parameters.emplace_back(name, leaf(at::zeros({1})));
  const auto optimizer = make_optimizer(config, parameters);
  ASSERT_EQ(optimizer->num_groups(), 3u);
  EXPECT_EQ(optimizer->lr(1), 0.01);
  EXPECT_EQ(optimizer->state().size(), 4u);
  EXPECT_FALSE(parameters[4].second.requires_grad());
  for (const auto& [name, parameter] : parameters) parameter.mutable_grad() = at::ones({1});
  optimizer->step(0.5);
  const double expected[] = {-0.005, -0.005, -0.5, -0.05, 0};
  for (int i = 0; i < 5; ++i) {
    EXPECT_NEAR(parameters[i].second.item<double>(), expected[i], 1e-7) << names[i];
  }
}

TEST(Optimizer, ExpressionsThatTakeNothingAreErrors) {
  const auto assign = [](const std::string& text) {
    return refusal([&] { parse(text).assign_groups({"wte.weight", "norm.weight"}); });
  };
  EXPECT_THAT(assign("{disable_grad: [wpe]}"), HasSubstr("'wpe' takes no parameter | parameters"));
  EXPECT_THAT(assign("{disable_grad: weight}"), HasSubstr("nothing is left to train"));
  EXPECT_THAT(assign("{param_groups: [{param_str_match: norm}, {param_str_match: norm.w}]}"),
              HasSubstr("'norm.w' takes no parameter: all that match belong to an earlier group"));
}

TEST(OptimizerConfig, DefaultsAreLlmFoundrys) {
  EXPECT_EQ(parse("{}").type, OptimizerType::kDecoupledAdamW);
  EXPECT_EQ(parse("{name: decoupled_lionw}").all.lr, 1e-4);
  EXPECT_EQ(parse("{name: clip_lion}").outlier_threshold, 5);
  EXPECT_EQ(parse("{name: adalr_lion}").outlier_threshold, 10);
  EXPECT_EQ(parse("{name: sgd}").moments(), 0);
  EXPECT_EQ(parse("{name: sgd, momentum: 0.5}").moments(), 1);
}

TEST(OptimizerConfig, IsScaledAsAWhole) {
  OptimizerConfig config = parse(
      "{name: decoupled_adamw, lr: 0.5, weight_decay: 0.1, param_groups: "
      "[{param_str_match: a, lr: 0.25}]}");
  config.scale(/*lr_scale=*/0.1, /*wd_pct=*/0.2);
  EXPECT_DOUBLE_EQ(config.all.lr, 0.05);
  EXPECT_DOUBLE_EQ(config.all.weight_decay, 0.01);
  EXPECT_DOUBLE_EQ(config.groups[0].config.lr, 0.025);
  EXPECT_DOUBLE_EQ(config.groups[0].config.weight_decay, 0.005);
}

TEST(OptimizerConfig, RefusesNonsenseWithItsPlace) {
  for (const char* text :
       {"{name: adam}", "{lr: 0}", "{betas: [0.9]}", "{betas: [0.9, 1.0]}", "{eps: -1}",
        "{weight_decay: -1}", "{learning_rate: 1}", "{momentum: 0.9}", "{amsgrad: true}",
        "{name: decoupled_lionw, eps: 1e-8}", "{name: decoupled_lionw, outlier_threshold: 2}",
        "{name: sgd, nesterov: true}", "{disable_grad: '('}", "{param_groups: [{lr: 1}]}",
        "{param_groups: [{param_str_match: a, nesterov: true}]}"}) {
    EXPECT_THAT(refusal([&] { parse(text); }), HasSubstr("t.yaml:1:")) << text;
  }
}

}  // namespace
}  // namespace dropless::train
