// The three backends of the MoE layer agree, value and gradient, on the same weights.
#include "train/nn/moe.h"

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>

#include <cmath>

#include "dropless/error.h"
#include "train/nn/moe_torch.h"
#include "train/nn/precision.h"

namespace dropless::train {
namespace {

MoELayerConfig parse(const std::string& extra) {
  const std::string text =
      "{ffn_type: mb_dmoe, moe_num_experts: 5, moe_top_k: 2, ffn_hidden_size: 24" + extra + "}";
  return MoELayerConfig::from_yaml(YamlDocument::parse(text, "t.yaml").root(), 16, 64,
                                   /*bias=*/true);
}

struct Outcome {
  at::Tensor out, losses, tokens;
  std::vector<at::Tensor> grads;
};

Outcome run(const MoELayerConfig& config, Precision precision = Precision::kFp32) {
  ParameterMaker maker({}, 16, 2, 11, at::kCPU);
  MoE moe(config, "ffn", maker);
  at::manual_seed(4);
  at::Tensor x = at::randn({3, 7, 16}).set_requires_grad(true);
  const at::Tensor weight = at::randn({3, 7, 16});
  RouterRecord record;
  Outcome outcome;
  {
    AutocastGuard autocast(precision, at::kCPU);
    outcome.out = moe.forward(x, record);
  }
  outcome.losses = record.losses_2.at(0);
  outcome.tokens = record.tokens_per_expert_E.at(0);
  ((outcome.out.to(at::kFloat) * weight).sum() + outcome.losses[0] * 3 + outcome.losses[1] * 0.7)
      .backward();
  outcome.grads.push_back(x.grad());
  for (const Parameter& parameter : maker.take()) outcome.grads.push_back(parameter.value.grad());
  return outcome;
}

double relative(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / (b.norm() + 1e-30)).item<double>();
}

TEST(MoE, RouterEntropyIsRelativeToAnUndecidedRouter) {
  const at::Tensor x_TD = at::eye(3);
  const auto entropy = [&](const at::Tensor& router_ED) {
    return router_entropy(x_TD, router_ED).item<double>();
  };
  EXPECT_NEAR(entropy(at::zeros({4, 3})), 1.0, 1e-6);
  EXPECT_NEAR(entropy(at::eye(4, 3) * 1e4), 0.0, 1e-6);
  EXPECT_EQ(entropy(at::ones({1, 3})), 0.0);
  // Logits ln 3 and 0: probabilities 3/4 and 1/4.
  const at::Tensor router_ED = at::tensor({std::log(3.0f), 0.0f}).view({2, 1}).expand({2, 3});
  const double expected = -(0.75 * std::log(0.75) + 0.25 * std::log(0.25)) / std::log(2.0);
  EXPECT_NEAR(entropy(router_ED), expected, 1e-6);
}

TEST(MoE, RecordsTheEntropyOnlyWhereItIsWanted) {
  ParameterMaker maker({}, 16, 2, 11, at::kCPU);
  MoE moe(parse(""), "ffn", maker);
  RouterRecord record;
  moe.forward(at::randn({1, 4, 16}), record);
  EXPECT_TRUE(record.entropy.empty());
  record.want_entropy = true;
  moe.forward(at::randn({1, 4, 16}), record);
  ASSERT_EQ(record.entropy.size(), 1u);
  EXPECT_FALSE(record.entropy[0].requires_grad());
}

TEST(MoE, BackendsAgree) {
  for (const char* extra :
       {", mlp_type: glu, ffn_act_fn: {name: silu}, moe_normalize_expert_weights: 1",
        ", mlp_type: mlp",
        ", mlp_type: mlp, ffn_act_fn: {name: relu}, moe_normalize_expert_weights: 2",
        ", mlp_type: glu, ffn_act_fn: {name: quick_gelu}",
        ", mlp_type: glu, ffn_act_fn: {name: gelu}, mlp_impl: grouped",
        ", mlp_type: glu, shared_expert: true, shared_expert_weighted_sum: true"}) {
    MoELayerConfig config = parse(extra);
    const Outcome dropless = run(config);
    for (const MoEBackend backend : {MoEBackend::kReference, MoEBackend::kTorch}) {
      config.backend = backend;
      const Outcome other = run(config);
      EXPECT_LT(relative(dropless.out, other.out), 1e-5) << extra;
      EXPECT_LT(relative(dropless.losses, other.losses), 1e-5) << extra;
      EXPECT_TRUE(at::equal(dropless.tokens, other.tokens));
      ASSERT_EQ(dropless.grads.size(), other.grads.size());
      for (std::size_t i = 0; i < dropless.grads.size(); ++i) {
        EXPECT_LT(relative(dropless.grads[i], other.grads[i]), 1e-5) << extra << " gradient " << i;
      }
    }
    EXPECT_EQ(dropless.tokens.sum().item<std::int64_t>(), 3 * 7 * 2);
  }
}

TEST(MoE, AutocastComputesInBf16) {
  MoELayerConfig config = parse(", mlp_type: glu");
  const Outcome exact = run(config);
  for (const MoEBackend backend : {MoEBackend::kAuto, MoEBackend::kTorch}) {
    config.backend = backend;
    const Outcome low = run(config, Precision::kAmpBf16);
    EXPECT_LT(relative(low.out.to(at::kFloat), exact.out), 3e-2);
    EXPECT_GT(relative(low.out.to(at::kFloat), exact.out), 1e-5);
    for (std::size_t i = 0; i < low.grads.size(); ++i) {
      EXPECT_EQ(low.grads[i].scalar_type(), at::kFloat);
      EXPECT_LT(relative(low.grads[i], exact.grads[i]), 5e-2) << "gradient " << i;
    }
  }
}

TEST(MoE, BackendFollowsDeviceAndType) {
  const at::Device cpu = at::kCPU, gpu(at::kCUDA, 0);
  MoELayerConfig config = parse("");
  EXPECT_EQ(resolve_backend(config, at::kFloat, cpu).backend, MoEBackend::kDropless);
  const BackendChoice choice = resolve_backend(config, at::kFloat, gpu);
  EXPECT_EQ(choice.backend, MoEBackend::kTorch);
  EXPECT_NE(choice.reason, "");
  for (const MoEBackend demanded : {MoEBackend::kDropless, MoEBackend::kReference}) {
    config.backend = demanded;
    EXPECT_EQ(resolve_backend(config, at::kFloat, cpu).backend, demanded);
    EXPECT_THROW(resolve_backend(config, at::kFloat, gpu), Error);
  }
  config.backend = MoEBackend::kTorch;
  EXPECT_EQ(resolve_backend(config, at::kFloat, gpu).reason, "");
}

TEST(MoE, BackendThatNothingCanRunIsRefusedAtOnce) {
  const at::Device cpu = at::kCPU, gpu(at::kCUDA, 0);
  MoELayerConfig sigmoid = parse(""), biased = parse(""), shared = parse("");
  sigmoid.moe.route.score = RouteScore::kSigmoid;
  biased.moe.expert_bias = true;
  shared.moe.shared_d_ffn = 8;
  for (MoELayerConfig config : {sigmoid, biased, shared}) {
    EXPECT_EQ(resolve_backend(config, at::kFloat, cpu).backend, MoEBackend::kDropless);
    EXPECT_THROW(resolve_backend(config, at::kFloat, gpu), Error);
    config.backend = MoEBackend::kTorch;
    EXPECT_THROW(resolve_backend(config, at::kFloat, cpu), Error);
  }
}

TEST(MoELayerConfig, RefusesWhatDoesNotFit) {
  for (const char* extra :
       {", moe_top_k: 6", ", moe_top_k: 0", ", mlp_type: gpu", ", backend: fast",
        ", ffn_act_fn: {name: swish}", ", moe_jitter_eps: 0.1", ", shared_expert_hidden_size: 0",
        ", moe_loss_weight: -1", ", mlp_impl: dense", ", moe_normalize_expert_weights: -1",
        ", moe_num_expert: 3"}) {
    EXPECT_THROW(parse(extra), Error) << extra;
  }
}

TEST(MoE, LibtorchsLayerRefusesOtherRouters) {
  const at::Tensor x = at::randn({3, 16}), router = at::randn({5, 16}), w = at::randn({5, 24, 16});
  MoEConfig plain = parse(", mlp_type: glu, moe_normalize_expert_weights: 1").moe;
  EXPECT_EQ(moe_layer_torch(plain, x, router, w, w, w).out_TD.size(0), 3);
  MoEConfig sigmoid = plain, biased = plain;
  sigmoid.route.score = RouteScore::kSigmoid;
  biased.selection_bias = true;
  for (const MoEConfig& config : {sigmoid, biased}) {
    try {
      moe_layer_torch(config, x, router, w, w, w);
      FAIL() << "did not throw";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
    }
  }
}

TEST(MoE, AutocastIsOnAgainAfterAThrow) {
  const at::Tensor x = at::randn({3, 16}), bad = at::randn({5, 8}), w = at::randn({5, 24, 16});
  const AutocastGuard autocast(Precision::kAmpBf16, at::kCPU);
  EXPECT_THROW(moe_layer_torch(parse("").moe, x, bad, w, w, w), c10::Error);
  EXPECT_TRUE(at::autocast::is_autocast_enabled(at::kCPU));
}

}  // namespace
}  // namespace dropless::train
