// Attention and RoPE against their definitions in fp64, and the key/value cache against the whole
// pass.
#include "train/nn/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string_view>

#include "dropless/error.h"

namespace dropless::train {
namespace {

AttentionConfig parse(const std::string& text, std::int64_t d_model = 32,
                      std::int64_t n_heads = 4) {
  return AttentionConfig::from_yaml(YamlDocument::parse(text, "t.yaml").root(), d_model, n_heads,
                                    std::nullopt, /*bias=*/true, NormConfig());
}

TEST(Rope, RotatesPairsByPositionAndKeepsNorms) {
  Rope rope(8, 10000.0, at::kCPU);
  at::manual_seed(1);
  const at::Tensor x = at::randn({2, 5, 3, 8});
  const at::Tensor y = rope.forward(x, 3);
  const auto in = x.accessor<float, 4>(), out = y.accessor<float, 4>();
  for (int s = 0; s < 5; ++s) {
    for (int i = 0; i < 4; ++i) {
      const double angle = (3 + s) * std::pow(10000.0, -2.0 * i / 8);
      const double a = in[1][s][2][i], b = in[1][s][2][i + 4];
      EXPECT_NEAR(out[1][s][2][i], a * std::cos(angle) - b * std::sin(angle), 1e-5);
      EXPECT_NEAR(out[1][s][2][i + 4], b * std::cos(angle) + a * std::sin(angle), 1e-5);
    }
  }
  EXPECT_NEAR(x.norm().item<double>(), y.norm().item<double>(), 1e-4);
}

TEST(Rope, GradientIsTheInverseRotation) {
  Rope rope(6, 100.0, at::kCPU);
  at::manual_seed(2);
  at::Tensor x = at::randn({1, 4, 2, 6}).set_requires_grad(true);
  const at::Tensor weight = at::randn({1, 4, 2, 6});
  (rope.forward(x, 0) * weight).sum().backward();
  // For a rotation R: d/dx <w, R x> = R^T w, so rotating the gradient forward gives w back.
  EXPECT_LT((rope.forward(x.grad(), 0) - weight).norm().item<double>(), 1e-5);
}

TEST(Attention, CacheGivesWhatTheWholePassGives) {
  for (const char* text :
       {"{rope: true}", "{rope: true, attn_type: multiquery_attention}",
        "{rope: true, qk_ln: true, attn_type: multiquery_attention}", "{qk_gn: true}",
        "{attn_type: grouped_query_attention, kv_n_heads: 2, clip_qkv: 0.5, softmax_scale: 0.2}"}) {
    const AttentionConfig config = parse(text);
    ParameterMaker maker({}, 32, 2, 7, at::kCPU);
    Attention attention(config, "attn", maker, at::kCPU);
    at::NoGradGuard no_grad;
    at::manual_seed(3);
    const at::Tensor x = at::randn({2, 9, 32});
    const at::Tensor whole = attention.forward(x, nullptr);
    KeyValueCache cache;
    std::vector<at::Tensor> parts{attention.forward(x.narrow(1, 0, 5), &cache)};
    for (int s = 5; s < 9; ++s) parts.push_back(attention.forward(x.narrow(1, s, 1), &cache));
    EXPECT_LT((at::cat(parts, 1) - whole).abs().max().item<double>(), 1e-5) << text;
    EXPECT_EQ(cache.keys.sizes(), (std::vector<std::int64_t>{2, config.kv_n_heads, 9, 8}));
  }
}

TEST(Attention, NormedQueriesAndKeysForgetTheScaleOfTheInput) {
  for (const char* text : {"{qk_ln: true}", "{qk_gn: true}", "{}"}) {
    ParameterMaker maker({}, 32, 2, 7, at::kCPU);
    Attention attention(parse(text), "attn", maker, at::kCPU);
    at::NoGradGuard no_grad;
    at::manual_seed(3);
    const at::Tensor x = at::randn({1, 6, 32});
    // Without biases (zero at first) q, k and v scale with x: only the scores can bend the output.
    const at::Tensor once = attention.forward(x, nullptr);
    const at::Tensor tenfold = attention.forward(x * 10.0, nullptr) / 10.0;
    const double change = ((tenfold - once).norm() / once.norm()).item<double>();
    if (std::string_view(text) == "{}") {
      EXPECT_GT(change, 0.1);
    } else {
      EXPECT_LT(change, 1e-4) << text;
    }
  }
}

TEST(Attention, DoesNotSeeLaterTokens) {
  ParameterMaker maker({}, 32, 2, 7, at::kCPU);
  Attention attention(parse("{rope: true}"), "attn", maker, at::kCPU);
  at::NoGradGuard no_grad;
  at::manual_seed(3);
  at::Tensor x = at::randn({1, 6, 32});
  const at::Tensor before = attention.forward(x, nullptr).clone();
  x.select(1, 4).add_(1.0);
  const at::Tensor after = attention.forward(x, nullptr);
  EXPECT_TRUE(at::equal(before.narrow(1, 0, 4), after.narrow(1, 0, 4)));
  EXPECT_FALSE(at::equal(before.select(1, 4), after.select(1, 4)));
}

TEST(AttentionConfig, RefusesSizesThatDoNotFit) {
  EXPECT_THROW(parse("{attn_type: grouped_query_attention, kv_n_heads: 3}"), Error);
  EXPECT_THROW(parse("{attn_type: grouped_query_attention}"), Error);
  EXPECT_THROW(parse("{attn_type: multihead_attention, kv_n_heads: 2}"), Error);
  EXPECT_THROW(parse("{rope: true}", 12, 4), Error);
  EXPECT_THROW(parse("{qk_ln: true, qk_gn: true}"), Error);
  EXPECT_THROW(parse("{alibi: true}"), Error);
  EXPECT_THROW(parse("{attn_pdrop: 0.1}"), Error);
}

}  // namespace
}  // namespace dropless::train
