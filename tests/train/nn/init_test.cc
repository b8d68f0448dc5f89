// Names, order and spread of the initial weights.
#include "train/nn/init.h"

#include <gtest/gtest.h>

#include <cmath>
#include <utility>

#include "dropless/error.h"

namespace dropless::train {
namespace {

InitConfig parse(const std::string& text) {
  return InitConfig::from_yaml(YamlDocument::parse(text, "t.yaml").root());
}

double spread(const at::Tensor& tensor) { return tensor.detach().std().item<double>(); }

TEST(ParameterMaker, SpreadsFollowTheScheme) {
  constexpr int kLayers = 8;
  const double residual = 1 / std::sqrt(2.0 * kLayers);
  const struct {
    const char* text;
    double linear, down;
  } cases[] = {
      {"{name: kaiming_normal_}", std::sqrt(2.0 / 64), std::sqrt(2.0 / 256) * residual},
      {"{name: xavier_normal_}", std::sqrt(2.0 / 320), std::sqrt(2.0 / 320) * residual},
      {"{name: kaiming_uniform_, fan_mode: fan_out}", std::sqrt(2.0 / 256),
       std::sqrt(2.0 / 64) * residual},
      {"{name: kaiming_normal_, init_nonlinearity: leaky_relu, init_gain: 2}", std::sqrt(0.4 / 64),
       std::sqrt(0.4 / 256) * residual},
      {"{name: kaiming_normal_, init_nonlinearity: linear, init_div_is_residual: 2}",
       std::sqrt(1.0 / 64), std::sqrt(1.0 / 256) / 2},
      {"{name: xavier_uniform_, init_gain: 3}", 3 * std::sqrt(2.0 / 320),
       3 * std::sqrt(2.0 / 320) * residual},
      {"{name: neox_init_}", std::sqrt(2.0 / (5 * 64)),
       std::sqrt(2.0 / (5 * 64)) * std::sqrt(10.0) / kLayers},
      {"{name: small_init_}", std::sqrt(2.0 / (5 * 64)), std::sqrt(2.0 / (5 * 64)) * residual},
      {"{name: baseline_, init_std: 0.1}", 0.1, 0.1 * residual},
      {"{name: baseline_, init_std: 0.1, init_div_is_residual: false}", 0.1, 0.1},
  };
  for (const auto& c : cases) {
    ParameterMaker maker(parse(c.text), /*d_model=*/64, kLayers, /*seed=*/1, at::kCPU);
    EXPECT_NEAR(spread(maker.linear("up", 256, 64)) / c.linear, 1, 0.03) << c.text;
    EXPECT_NEAR(spread(maker.linear("down", 64, 256, true)) / c.down, 1, 0.03) << c.text;
    EXPECT_NEAR(spread(maker.experts("w1", 2, 256, 64, false)) / c.linear, 1, 0.03) << c.text;
    EXPECT_NEAR(spread(maker.experts("w2", 2, 256, 64, true)) / c.down, 1, 0.03) << c.text;
  }
}

TEST(ParameterMaker, UniformSchemesStayWithinTheirLimit) {
  ParameterMaker maker(parse("{name: kaiming_uniform_}"), 64, 8, 1, at::kCPU);
  const double limit = std::sqrt(6.0 / 64);
  const double largest = maker.linear("up", 256, 64).detach().abs().max().item<double>();
  EXPECT_LE(largest, limit);
  EXPECT_GT(largest, 0.99 * limit);
}

TEST(ParameterMaker, PartsOfAFusedProjectionHaveTheirOwnFans) {
  const auto parts = [](const char* text) {
    ParameterMaker maker(parse(text), 64, 8, 1, at::kCPU);
    const at::Tensor fused = maker.fused("Wqkv", {256, 64, 64}, 64);
    return std::pair(spread(fused.narrow(0, 0, 256)), spread(fused.narrow(0, 256, 128)));
  };
  const auto [q, kv] = parts("{name: xavier_normal_}");
  EXPECT_NEAR(q / std::sqrt(2.0 / 320), 1, 0.03);
  EXPECT_NEAR(kv / std::sqrt(2.0 / 128), 1, 0.03);
  // Where the spreads are equal, the values are those of one matrix.
  ParameterMaker fused({}, 64, 8, 1, at::kCPU), whole({}, 64, 8, 1, at::kCPU);
  EXPECT_TRUE(at::equal(fused.fused("Wqkv", {256, 64, 64}, 64), whole.linear("Wqkv", 384, 64)));
}

TEST(ParameterMaker, EmbeddingsHaveASpreadOfTheirOwn) {
  const auto table = [](const char* text) {
    ParameterMaker maker(parse(text), 64, 8, 1, at::kCPU);
    return maker.embedding("wte", 300, 64).detach();
  };
  EXPECT_NEAR(spread(table("{emb_init_std: 3}")) / 3, 1, 0.03);
  EXPECT_EQ(spread(table("{emb_init_std: 0}")), 0);
  EXPECT_NEAR(spread(table("{emb_init_std: null}")) / std::sqrt(2.0 / 64), 1, 0.03);
  const at::Tensor symmetric = table("{emb_init_uniform_lim: 0.5}");
  EXPECT_NEAR(symmetric.min().item<double>(), -0.5, 1e-3);
  EXPECT_NEAR(symmetric.max().item<double>(), 0.5, 1e-3);
  const at::Tensor shifted = table("{emb_init_uniform_lim: [1, 2]}");
  EXPECT_NEAR(shifted.min().item<double>(), 1, 1e-3);
  EXPECT_NEAR(shifted.max().item<double>(), 2, 1e-3);
}

TEST(ParameterMaker, SeedAndOrderDecideTheValues) {
  const auto draw = [](std::uint64_t seed) {
    ParameterMaker maker({}, 8, 1, seed, at::kCPU);
    maker.linear("a", 4, 8);
    maker.constant("b", 3, 1.0);
    maker.embedding("c", 5, 8);
    return maker.take();
  };
  const auto first = draw(5), again = draw(5), other = draw(6);
  ASSERT_EQ(first.size(), 3u);
  EXPECT_EQ(first[0].name, "a");
  EXPECT_EQ(first[2].name, "c");
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(first[i].value.requires_grad());
    EXPECT_TRUE(first[i].value.is_leaf());
    EXPECT_TRUE(at::equal(first[i].value, again[i].value));
  }
  EXPECT_FALSE(at::equal(first[0].value, other[0].value));
}

TEST(InitConfig, RefusesNonsense) {
  EXPECT_THROW(parse("{name: ones_}"), Error);
  for (const char* text :
       {"{init_std: 0}", "{emb_init_std: -1}", "{init_sdt: 1}", "{fan_mode: fan}",
        "{init_nonlinearity: gelu}", "{name: xavier_normal_, init_gain: 0}",
        "{emb_init_uniform_lim: [2, 1]}", "{emb_init_uniform_lim: 0}",
        "{emb_init_uniform_lim: [1]}", "{emb_init_uniform_lim: 1, emb_init_std: 1}",
        "{init_div_is_residual: 0}", "{init_div_is_residual: yes}"}) {
    EXPECT_THROW(parse(text), Error) << text;
  }
}

}  // namespace
}  // namespace dropless::train
