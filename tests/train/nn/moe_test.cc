// The three backends of the MoE layer agree, value and gradient, on the same weights.
#include "train/nn/moe.h"

#include <ATen/autocast_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "dropless/error.h"
#include "train/bridge/device.h"
#include "train/nn/moe_torch.h"
#include "train/nn/precision.h"

namespace dropless::train {
namespace {

MoELayerConfig parse(const std::string& extra) {
  const std::string text =
      "{ffn_type: mb_dmoe, moe_num_experts: 5, moe_top_k: 2, ffn_hidden_size: 24}";
  const std::string changes = "{" + (extra.empty() ? extra : extra.substr(2)) + "}";
  const auto document = YamlDocument::parse("moe: " + text, "t.yaml", {"moe=" + changes});
  return MoELayerConfig::from_yaml(document.root().map("moe"), 16, 64, /*bias=*/true);
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
  for (const Parameter& parameter : maker.take()) {
    if (parameter.value.requires_grad()) outcome.grads.push_back(parameter.value.grad());
  }
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
        ", mlp_type: glu, shared_expert: true, shared_expert_weighted_sum: true",
        ", mlp_type: glu, moe_router_score: sigmoid, moe_normalize_expert_weights: 1, "
        "moe_routed_scaling_factor: 2.5",
        ", mlp_type: glu, uniform_expert_assignment: true", ", moe_selection_bias: true",
        ", moe_num_experts: 6, moe_num_groups: 3, moe_group_top_k: 2, moe_router_score: sigmoid",
        ", moe_num_experts: 6, moe_num_groups: 3, moe_group_top_k: 1, moe_selection_bias: true",
        ", ffn_type: mb_moe, mlp_type: glu, moe_capacity_factor: 0.7"}) {
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

TEST(MoE, AGpusKernelsAreTakenByDefault) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  const at::Device gpu(at::kCUDA, 0);
  for (const char* router : {"", ", moe_router_score: sigmoid"}) {
    for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
      const BackendChoice choice = resolve_backend(parse(router), type, gpu);
      EXPECT_EQ(choice.backend, MoEBackend::kDropless) << router << choice.reason;
    }
  }
}

TEST(MoELayerConfig, RefusesWhatDoesNotFit) {
  for (const char* extra : {", moe_top_k: 6",
                            ", moe_top_k: 0",
                            ", mlp_type: gpu",
                            ", backend: fast",
                            ", ffn_act_fn: {name: swish}",
                            ", moe_jitter_eps: 1",
                            ", shared_expert_hidden_size: 0",
                            ", moe_loss_weight: -1",
                            ", mlp_impl: dense",
                            ", moe_normalize_expert_weights: -1",
                            ", moe_num_expert: 3",
                            ", moe_router_score: relu",
                            ", moe_num_groups: 2",
                            ", moe_num_experts: 6, moe_num_groups: 3, moe_group_top_k: 4",
                            ", moe_num_experts: 6, moe_num_groups: 6, moe_group_top_k: 1",
                            ", hidden_size: 8",
                            ", moe_expert_model_parallelism: true",
                            ", fc_cls: te",
                            ", pipeline_model_parallel_size: 2",
                            ", activation_fn: relu",
                            ", init_method: normal",
                            ", moe_routed_scaling_factor: 0",
                            ", ffn_type: mb_moe, moe_capacity_factor: -1"}) {
    EXPECT_THROW(parse(extra), Error) << extra;
  }
}

// The bias decides which experts are taken, and no weight or loss contains it.
TEST(MoE, SelectionBiasChoosesAndIsUpdatedTowardsBalance) {
  MoELayerConfig config = parse(", mlp_type: glu, moe_top_k: 1, moe_selection_bias: true");
  config.bias_update_rate = 10;
  ParameterMaker maker({}, 16, 2, 11, at::kCPU);
  MoE moe(config, "ffn", maker);
  at::manual_seed(4);
  const at::Tensor x = at::randn({1, 40, 16});
  const auto load = [&] {
    RouterRecord record;
    at::NoGradGuard no_grad;
    moe.forward(x, record);
    return record.tokens_per_expert_E.at(0).to(at::kLong);
  };
  const at::Tensor before = load();
  const std::int64_t least = before.argmin().item<std::int64_t>();
  moe.update_selection_bias(before);
  const at::Tensor after = load();
  // Scores are at most 1: with biases of +-10 only the experts that had too few are taken.
  EXPECT_GT(after[least].item<std::int64_t>(), before[least].item<std::int64_t>());
  for (int e = 0; e < 5; ++e) {
    if (before[e].item<std::int64_t>() <= 8) continue;
    EXPECT_EQ(after[e].item<std::int64_t>(), 0) << e;
  }
  for (const Parameter& parameter : maker.take()) {
    EXPECT_EQ(parameter.value.requires_grad(), parameter.name != "ffn.router.selection_bias");
  }
}

TEST(MoE, JitterIsOfTrainingAndFollowsTheGenerator) {
  const MoELayerConfig config = parse(", mlp_type: glu, moe_jitter_eps: 0.3");
  EXPECT_EQ(resolve_backend(config, at::kFloat, at::kCPU).backend, MoEBackend::kTorch);
  EXPECT_THAT(resolve_backend(config, at::kFloat, at::kCPU).reason,
              ::testing::HasSubstr("moe_jitter_eps"));
  MoELayerConfig demanded = config;
  demanded.backend = MoEBackend::kDropless;
  EXPECT_THROW(resolve_backend(demanded, at::kFloat, at::kCPU), Error);

  ParameterMaker maker({}, 16, 2, 11, at::kCPU);
  const MoE moe(config, "ffn", maker);
  at::NoGradGuard no_grad;
  const at::Tensor x = at::randn({3, 7, 16});
  const auto pass = [&](bool training, std::uint64_t seed) {
    at::manual_seed(seed);
    RouterRecord record;
    return moe.forward(x, record, training);
  };
  EXPECT_TRUE(at::equal(pass(false, 1), pass(false, 2)));
  EXPECT_TRUE(at::equal(pass(true, 1), pass(true, 1)));
  EXPECT_FALSE(at::equal(pass(true, 1), pass(true, 2)));
}

TEST(MoE, CapacityDropsTheLastRows) {
  MoELayerConfig config = MoELayerConfig::from_yaml(
      YamlDocument::parse(
          "{ffn_type: mb_moe, moe_num_experts: 4, moe_top_k: 2, ffn_hidden_size: 8, "
          "moe_capacity_factor: 0.5, uniform_expert_assignment: true}",
          "t.yaml")
          .root(),
      16, 64, /*bias=*/false);
  ParameterMaker maker({}, 16, 2, 11, at::kCPU);
  at::NoGradGuard no_grad;
  const at::Tensor x = at::randn({1, 8, 16});
  RouterRecord record;
  for (const MoEBackend backend : {MoEBackend::kAuto, MoEBackend::kTorch}) {
    config.backend = backend;
    // 16 rows evenly over 4 experts, of which each keeps 2: tokens 0 to 3 have one or both.
    const at::Tensor out = MoE(config, "ffn", maker).forward(x, record).abs().amax(2)[0];
    for (int t = 0; t < 8; ++t) EXPECT_EQ(out[t].item<float>() > 0, t < 4) << t;
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
