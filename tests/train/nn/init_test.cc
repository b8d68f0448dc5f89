// Names, order and spread of the initial weights.
#include "train/nn/init.h"

#include <gtest/gtest.h>

#include <cmath>

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
  EXPECT_THROW(parse("{init_std: 0}"), Error);
  EXPECT_THROW(parse("{emb_init_std: -1}"), Error);
  EXPECT_THROW(parse("{init_sdt: 1}"), Error);
}

}  // namespace
}  // namespace dropless::train
